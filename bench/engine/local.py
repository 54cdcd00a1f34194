"""Runs cells on this machine."""

from __future__ import annotations

import itertools
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

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
