"""Engines: cells in, records out. `drive` decides what runs when, an engine where it runs."""

from __future__ import annotations

import itertools
import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock

from bench import isolate, plan
from bench.api import BenchError, Cell
from bench.claims import Claims
from bench.isolate import failed
from bench.parallel import ALONE, Means
from bench.record import Record
from bench.store import path_of

OnProgress = Callable[[Cell, str, int, int], None]

LOGS = Path(".sparsebench/logs")
"""What the cells print, on the machine that they run on."""

LOOK_S = 2.0
"""Seconds between two looks at what other drivers and new machines have done."""


class Engine(ABC):
    """A place where cells run."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Cells that run at a time; it may change."""

    @abstractmethod
    def submit(self, cell: Cell) -> Future[Record]:
        """Starts a cell, or has it wait for a slot.

        The future holds its record, done or failed; where it raises `BenchError`, the engine itself
        has failed.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends whatever still runs."""


def drive(cells: Sequence[Cell], engine: Engine, claims: Claims) -> Generator[Record, None, None]:
    """Runs cells, dense ones before those that need them, and stops the engine at the end.

    A cell that another driver is at is waited for: its record counts as if it were made here.

    Args:
        cells: to be run.
        engine: runs them.
        claims: tells other drivers what runs here.

    Yields:
        The record of every cell, done or failed, as it comes. The cell is this driver's until the
        next one is asked for, so that its record can be written.
    """
    waiting = list(cells)
    unfinished = set(cells)
    claims.begin(cells)
    broken: set[Cell] = set()
    running: dict[Future[Record], Cell] = {}

    def settle(record: Record) -> Record:
        unfinished.discard(record.cell)
        if record.status == "failed":
            broken.add(record.cell)
        return record

    try:
        while waiting or running:
            slots = engine.slots
            for cell in list(waiting):
                needed = plan.reference_of(cell) if plan.needs_reference(cell) else None
                if needed in unfinished or len(running) >= slots:
                    continue
                if needed in broken:
                    waiting.remove(cell)
                    why = f"the dense cell it starts from failed: {needed}"
                    yield settle(failed(cell, "error", why))
                elif claims.take(cell):
                    waiting.remove(cell)
                    if found := claims.settled(cell):
                        yield settle(found)
                        claims.drop(cell)
                    else:
                        running[engine.submit(cell)] = cell
            if waiting and not running:
                time.sleep(LOOK_S)
            # While cells wait, another driver may finish them or another slot may come up.
            idle = LOOK_S if waiting else None
            for future in wait(running, idle, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                yield settle(future.result())
                claims.drop(cell)
    finally:
        engine.stop()


class Local(Engine):
    """This machine.

    Args:
        slots: cells at a time.
        on_progress: called with (cell, phase, done, all).
        timeout_s: after which a cell is stopped; by default its budget says.
        means: what cells are run with.
    """

    slots = 0

    def __init__(
        self,
        slots: int,
        on_progress: OnProgress,
        timeout_s: float | None = None,
        means: Means = ALONE,
    ) -> None:
        self.slots, self.means = slots, means
        self.on_progress, self.timeout_s = on_progress, timeout_s
        self.pool = ThreadPoolExecutor(slots)
        self.shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for share in shares(slots, means.processes):
            self.shares.put(share)

    def submit(self, cell: Cell) -> Future[Record]:
        """Starts a cell in a thread of its own."""
        return self.pool.submit(self._run, cell)

    def stop(self) -> None:
        """Ends whatever still runs."""
        isolate.kill_all()
        self.pool.shutdown()

    def _run(self, cell: Cell) -> Record:
        share = self.shares.get()
        try:
            return run_here(cell, self.on_progress, self.timeout_s, share, self.means)
        except (BenchError, OSError) as error:
            return failed(cell, getattr(error, "kind", "error"), str(error))
        finally:
            self.shares.put(share)


def run_here(
    cell: Cell,
    on_progress: OnProgress,
    timeout_s: float | None = None,
    env: dict[str, str] | None = None,
    means: Means = ALONE,
) -> Record:
    """Runs a cell on this machine, in a process of its own.

    The dense cell that it starts from is run before it if its weights are not in this machine's
    cache: its record is another one's, or there already, and training gives the same weights again.

    Args:
        cell: what to run.
        on_progress: called with (cell, phase, done, all).
        timeout_s: after which a cell is stopped; by default its budget says.
        env: additions to the process's environment.
        means: what the cell is run with.
    """

    def run(cell: Cell) -> Record:
        return isolate.run_isolated(
            cell,
            timeout_s or plan.budget_of(cell).timeout_s,
            LOGS / path_of(cell).with_suffix(".log"),
            lambda phase, done, all_: on_progress(cell, phase, done, all_),
            {"TOKENIZERS_PARALLELISM": "false", **(env or {})},
            means,
        )

    if plan.needs_reference(cell):
        reference = plan.reference_of(cell)
        place = plan.trained_dir(reference)
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            error = None if place.is_dir() else run(reference).error
        if error is not None:
            why = f"the dense cell it starts from failed: {reference}: {error.message}"
            return failed(cell, error.kind, why, error.log_tail)
    return run(cell)


def shares(slots: int, processes: int = 1) -> list[dict[str, str]]:
    """What the environment of each slot says of its part of the machine: GPUs, or some cores.

    Args:
        slots: cells at a time.
        processes: that train a cell together, a GPU each.
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
