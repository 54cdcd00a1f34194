"""Engines: cells in, outcomes out. This one uses the local machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from bench import isolate, plan
from bench.api import BenchError, Cell
from bench.claims import Claims
from bench.isolate import failed
from bench.record import Record
from bench.store import path_of

OnProgress = Callable[[Cell, str, int, int], None]

LOOK_S = 2.0
"""Seconds between two looks at what other drivers have done."""


def local(
    cells: Sequence[Cell],
    slots: int,
    logs: Path,
    on_progress: OnProgress,
    claims: Claims,
    timeout_s: float | None = None,
) -> Generator[Record, None, None]:
    """Runs cells on this machine, `slots` at a time, dense ones before those that need them.

    A cell that another driver is at is waited for: its record counts as if it were made here.

    Args:
        cells: to be run.
        slots: at a time.
        logs: folder for what the cells print.
        on_progress: called with (cell, phase, done, all).
        claims: tells other drivers what runs here.
        timeout_s: after which a cell is stopped; by default its budget says.

    Yields:
        The record of every cell, done or failed, as it comes. The cell is this driver's until the
        next one is asked for, so that its record can be written.
    """
    # Slots share the cores; with one slot the libraries decide.
    cores = str(max(1, (os.cpu_count() or 1) // slots))
    env = {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores} if slots > 1 else {}
    env["TOKENIZERS_PARALLELISM"] = "false"
    waiting = list(cells)
    unfinished = set(cells)
    broken: set[Cell] = set()

    def run(cell: Cell) -> Record:
        return isolate.run_isolated(
            cell,
            timeout_s or plan.budget_of(cell).timeout_s,
            logs / path_of(cell).with_suffix(".log"),
            lambda phase, done, all_: on_progress(cell, phase, done, all_),
            env,
        )

    def settle(record: Record) -> Record:
        unfinished.discard(record.cell)
        if record.status == "failed":
            broken.add(record.cell)
        return record

    with ThreadPoolExecutor(slots) as pool:
        running: dict[Future[Record], Cell] = {}
        try:
            while waiting or running:
                for cell in list(waiting):
                    needed = plan.reference_of(cell) if plan.needs_reference(cell) else None
                    if needed in unfinished or len(running) == slots:
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
                            running[pool.submit(run, cell)] = cell
                # With a free slot there may be cells that another driver is at.
                idle = LOOK_S if waiting and len(running) < slots else None
                if waiting and not running:
                    time.sleep(LOOK_S)
                for future in wait(running, idle, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    yield settle(_result(future, cell))
                    claims.drop(cell)
        except BaseException:
            isolate.kill_all()
            raise


def _result(future: Future[Record], cell: Cell) -> Record:
    try:
        return future.result()
    except (BenchError, OSError) as error:
        return failed(cell, getattr(error, "kind", "error"), str(error))
