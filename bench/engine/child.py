"""The process of one cell."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any, TypeVar

from bench.core.cell import Cell
from bench.core.errors import BenchError, Outcome
from bench.core.record import Record
from bench.core.run_settings import RunSettings
from bench.engine.messages import COMMAND, failed
from bench.planning.job import Job
from bench.training import devices

T = TypeVar("T")


def child_main() -> int:
    """Runs the cell that standard input names; the entry of the subprocess."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, prints to the log
    order = json.loads(sys.stdin.readline())
    job = Job.resolve(Cell.model_validate(order["cell"]))
    threading.Thread(target=_die_with_driver, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("bench", "methods", "tasks"):
        logging.getLogger(package).setLevel(logging.INFO)
    means = RunSettings(**order["means"])
    if means.processes > 1 and order["rank"] == 0:
        devices.start_others(order, means.processes, COMMAND, events)
    record = _first(job, events, means) if order["rank"] == 0 else _other(job, means)
    if record is not None:
        events.write(json.dumps({"record": record.to_json()}) + "\n")
        events.flush()
    return 0


def _first(job: Job, events: IO[str], means: RunSettings) -> Record:
    from bench.costs.measure import reuse_freed_memory
    from bench.pipeline.cache import clear_scratch
    from bench.pipeline.run import run_cell

    def emit(phase: str, done: int, all_: int) -> None:
        events.write(json.dumps({"phase": phase, "done": done, "all": all_}) + "\n")

    reuse_freed_memory()
    record = _attempt(job, lambda: run_cell(job, emit, means))
    # A process that is killed leaves its checkpoints; with a full disk they may serve again, too.
    if record.error is not None and record.error.kind != "disk":
        clear_scratch(job)
    return record


def _other(job: Job, means: RunSettings) -> Record | None:
    """Trains along as one of a cell's other processes, and reports only failures."""
    from bench.pipeline.fit import fit_cell

    found = _attempt(job, lambda: fit_cell(job, lambda *_: None, True, means))
    if not isinstance(found, Record) or found.error is None:
        return None
    # Short enough to be written in one go, into the pipe that the first process writes to.
    return failed(job, found.error.kind, found.error.message[:500])


def _attempt(job: Job, work: Callable[[], T]) -> T | Record:
    try:
        return work()
    except BenchError as error:
        return failed(job, error.kind, str(error))
    except Exception as error:
        traceback.print_exc()
        return failed(job, _kind(error), f"{type(error).__name__}: {error}", _trace())


def _kind(error: Exception) -> Outcome:
    import torch

    text = str(error).lower()
    signs = ("can't allocate memory", "cannot allocate memory", "bad_alloc")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(s in text for s in signs):
        return "oom"
    # safetensors tells the number in its text only.
    told = re.search(r"\(os error (\d+)\)", text)
    number = getattr(error, "errno", None) or (told and int(told[1]))
    full = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
    return "disk" if number in full else "error"


def _trace() -> str:
    return traceback.format_exc()[-4000:]


def _die_with_driver() -> Any:
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(child_main())
