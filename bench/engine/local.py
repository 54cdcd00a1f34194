"""Runs cells on this machine."""

from __future__ import annotations

import itertools
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bench.core.errors import BenchError
from bench.core.record import Record
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.core.store import path_of
from bench.engine import isolate
from bench.engine.messages import failed
from bench.engine.scheduler import Engine, OnProgress
from bench.pipeline.cache import trained_dir
from bench.planning.job import Job

LOGS = Path(".sparsebench/logs")
"""Folder of the cells' output, on the machine that runs them."""


if TYPE_CHECKING:
    from bench.engine.estimate import Estimator

CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Where Linux states the memory of a container."""

MEMORY_SHARE = 0.8
"""Share of the memory that cells may fill; the rest is for the driver and other programs."""

BYTES_A_PARAMETER = 20
"""Of a cell without a record yet: weights, gradients, Adam's two moments and a copy, in float32."""

BESIDE_MODEL = 3 * 2**29
"""Bytes of a cell beside its model: activations and libraries."""


class Local(Engine):
    """This machine.

    Args:
        slots: number of cells at a time.
        on_progress: called with (cell, phase, done, all).
        timeout_s: time limit of a cell in seconds; by default that of its budget.
        settings: settings of all runs.
    """

    slots = 0

    def __init__(
        self,
        slots: int,
        on_progress: OnProgress,
        timeout_s: float | None = None,
        settings: RunSettings = DEFAULTS,
    ) -> None:
        self.slots, self.settings = slots, settings
        self.on_progress, self.timeout_s = on_progress, timeout_s
        self.pool = ThreadPoolExecutor(slots)
        self.shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for share in shares(slots, settings.processes):
            self.shares.put(share)
        isolate.warm_up()

    def submit(self, job: Job) -> Future[Record]:
        """Starts a cell as soon as a slot is free; the future holds its record."""
        return self.pool.submit(self._run, job)

    def stop(self) -> None:
        """Kills all running cells."""
        isolate.kill_all()
        self.pool.shutdown()

    def _run(self, job: Job) -> Record:
        share = self.shares.get()
        try:
            return run_here(job, self.on_progress, self.timeout_s, share, self.settings)
        except (BenchError, OSError, EOFError) as error:  # the last: no process could be started
            return failed(job, getattr(error, "kind", "error"), str(error))
        finally:
            self.shares.put(share)


def run_here(
    job: Job,
    on_progress: OnProgress,
    timeout_s: float | None = None,
    env: dict[str, str] | None = None,
    settings: RunSettings = DEFAULTS,
) -> Record:
    """Runs a cell on this machine in its own process and returns its record.

    If the cell starts from a dense cell whose weights are not in this machine's cache, the dense
    cell runs first. Its record may come from another machine; training gives the same weights.

    Args:
        job: the cell to run.
        on_progress: called with (cell, phase, done, all).
        timeout_s: time limit of a cell in seconds; by default that of its budget.
        env: additions to the process's environment.
        settings: settings of the run.
    """

    def run(job: Job) -> Record:
        return isolate.run_isolated(
            job,
            timeout_s or job.budget.timeout_s,
            LOGS / path_of(job.cell).with_suffix(".log"),
            lambda phase, done, all_: on_progress(job.cell, phase, done, all_),
            {"TOKENIZERS_PARALLELISM": "false", **(env or {})},
            settings,
        )

    if job.needs_dense:
        weights = trained_dir(job.dense)
        weights.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(weights.with_name(f".{weights.name}.lock")):
            error = None if weights.is_dir() else run(job.dense).error
        if error is not None:
            reason = f"the dense cell it starts from failed: {job.dense.cell}: {error.message}"
            return failed(job, error.kind, reason, error.log_tail)
    return run(job)


def default_slots(jobs: Sequence[Job], estimator: Estimator, processes: int = 1) -> int:
    """Returns how many cells run at a time: one a GPU, else one a core if memory suffices.

    It depends on all jobs of a command and not on those that are left, so that a command that is
    given again runs its cells with as many threads as before and can use their checkpoints.

    Args:
        jobs: all jobs of the command, their models fetched.
        estimator: knows the memory of earlier cells.
        processes: number of processes that train a cell together.
    """
    import torch

    most = min(len(jobs), (torch.cuda.device_count() or os.cpu_count() or 1) // processes)
    if most > 1 and not torch.cuda.is_available():
        distinct = {(job.cell.task, job.cell.model, job.budget): job for job in jobs}
        need = max(estimator.peak_bytes(job) or _memory_of(job) for job in distinct.values())
        most = min(most, int(MEMORY_SHARE * _memory() / need))
    return max(1, most)


def _memory() -> int:
    """Returns the bytes of memory of this machine, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or `max`
        return total


def _memory_of(job: Job) -> int:
    """Guesses a cell's memory from its model; all there is where the model is unknown."""
    from bench.sources.architectures import config_at, empty, for_task

    try:
        config = config_at(job.place)
    except BenchError:
        return _memory()
    model = empty(*for_task(config, job.task))
    return BESIDE_MODEL + BYTES_A_PARAMETER * sum(p.numel() for p in model.parameters())


def shares(slots: int, processes: int = 1) -> list[dict[str, str]]:
    """Returns environment variables for each slot that give it a share of the GPUs or cores.

    Args:
        slots: number of cells at a time.
        processes: number of processes that train a cell together, with a GPU each.
    """
    import torch

    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(count)]
        turns = itertools.cycle(names)
        return [
            {"CUDA_VISIBLE_DEVICES": ",".join(itertools.islice(turns, processes))}
            for _ in range(slots)
        ]
    if slots * processes == 1:
        return [{}]  # the libraries decide
    cores = str(max(1, (os.cpu_count() or 1) // (slots * processes)))
    return [{"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores} for _ in range(slots)]
