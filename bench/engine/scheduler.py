"""Engines: cells in, records out. `drive` decides what runs when, an engine where it runs.

A cell needs one other cell at most, so the set of unfinished cells tells what may start; a sorter
like graphlib's would know no more, and the slots and leases would need the same lists beside it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from bench.core.cell import Cell
from bench.core.record import Record
from bench.engine.leases import Leases
from bench.engine.messages import failed
from bench.planning.job import Job

OnProgress = Callable[[Cell, str, int, int], None]

LOOK_S = 2.0
"""Seconds between two looks at what other drivers and new machines have done."""


class Engine(ABC):
    """A place where cells run."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Cells that run at a time; it may change."""

    @abstractmethod
    def submit(self, job: Job) -> Future[Record]:
        """Starts a cell, or has it wait for a slot.

        The future holds its record, done or failed; where it raises `BenchError`, the engine itself
        has failed.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends whatever still runs."""


def drive(
    jobs: Sequence[Job],
    engine: Engine,
    leases: Leases,
    on_start: Callable[[Cell], None] = lambda _: None,
) -> Generator[Record, None, None]:
    """Runs cells, dense ones before those that need them, and stops the engine at the end.

    A cell that another driver is at is waited for: its record counts as if it were made here.

    Args:
        jobs: to be run.
        engine: runs them.
        leases: tells other drivers what runs here.
        on_start: called with each cell that is handed to the engine.

    Yields:
        The record of every cell, done or failed, as it comes. The cell is this driver's until the
        next one is asked for, so that its record can be written.
    """
    waiting = list(jobs)
    unfinished = {job.cell for job in jobs}
    leases.begin(unfinished)
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
            for job in list(waiting):
                needed = job.cell.dense if job.needs_dense else None
                if needed in unfinished or len(running) >= slots:
                    continue
                if needed in broken:
                    waiting.remove(job)
                    reason = f"the dense cell it starts from failed: {needed}"
                    yield settle(failed(job, "error", reason))
                elif leases.take(job.cell):
                    waiting.remove(job)
                    if record := leases.settled(job.cell):
                        yield settle(record)
                        leases.drop(job.cell)
                    else:
                        on_start(job.cell)
                        running[engine.submit(job)] = job.cell
            if waiting and not running:
                time.sleep(LOOK_S)
            # While cells wait, another driver may finish them or another slot may come up.
            idle = LOOK_S if waiting else None
            for future in wait(running, idle, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                yield settle(future.result())
                leases.drop(cell)
    finally:
        engine.stop()
