"""Engines: cells in, outcomes out. This one uses the local machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from bench import isolate, plan
from bench.api import BenchError, Cell
from bench.isolate import failed
from bench.record import Record
from bench.store import path_of

OnProgress = Callable[[Cell, str, int, int], None]


def local(
    cells: Sequence[Cell], slots: int, logs: Path, on_progress: OnProgress
) -> Iterator[Record]:
    """Runs cells on this machine, `slots` at a time, dense ones before those that need them.

    Yields:
        The record of every cell, done or failed, as it comes.
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
            plan.budget_of(cell).timeout_s,
            logs / path_of(cell).with_suffix(".log"),
            lambda phase, done, all_: on_progress(cell, phase, done, all_),
            env,
        )

    with ThreadPoolExecutor(slots) as pool:
        running: dict[Future[Record], Cell] = {}
        try:
            while waiting or running:
                for cell in list(waiting):
                    needed = plan.reference_of(cell) if plan.needs_reference(cell) else None
                    if needed in broken:
                        waiting.remove(cell)
                        unfinished.discard(cell)
                        broken.add(cell)
                        yield failed(
                            cell, "error", f"the dense cell it starts from failed: {needed}"
                        )
                    elif needed not in unfinished and len(running) < slots:
                        waiting.remove(cell)
                        running[pool.submit(run, cell)] = cell
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = running.pop(future)
                    record = _result(future, cell)
                    unfinished.discard(cell)
                    if record.status == "failed":
                        broken.add(cell)
                    yield record
        except BaseException:
            isolate.kill_all()
            raise


def _result(future: Future[Record], cell: Cell) -> Record:
    try:
        return future.result()
    except (BenchError, OSError) as error:
        return failed(cell, getattr(error, "kind", "error"), str(error))
