"""The process that runs one cell."""

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
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import IO, Any, NoReturn, TypeVar

from bench.core.errors import BenchError, Outcome
from bench.core.record import Record
from bench.core.run_settings import RunSettings
from bench.engine.messages import COMMAND, failed
from bench.planning.job import Job
from bench.training import devices

T = TypeVar("T")


def enter(orders: Connection, answers: Connection, log: str, env: Mapping[str, str]) -> NoReturn:
    """Makes a fresh process a cell's: with a group and an environment of its own, and a log.

    Args:
        orders: becomes the standard input.
        answers: becomes the standard output.
        log: file that takes what is written to the standard error.
        env: the whole environment.
    """
    import torch

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for end, number in ((orders, 0), (answers, 1)):
        os.dup2(end.fileno(), number)
        end.close()
    with open(log, "ab") as sink:
        os.dup2(sink.fileno(), 2)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if threads := env.get("OMP_NUM_THREADS"):  # read when torch was imported, perhaps before
        torch.set_num_threads(int(threads))
    sys.exit(child_main())


def child_main() -> int:
    """Runs the cell that standard input names, and writes its record; returns the exit status."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # all other output goes to the log
    order = json.loads(sys.stdin.readline())
    job = Job.of_order(order)
    threading.Thread(target=_die_with_driver, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("bench", "methods", "tasks"):
        logging.getLogger(package).setLevel(logging.INFO)
    settings = RunSettings(**order["settings"])
    if settings.processes > 1 and order["rank"] == 0:
        devices.start_others(order, settings.processes, COMMAND, events)
    record = _first(job, events, settings) if order["rank"] == 0 else _other(job, settings)
    if record is not None:
        events.write(json.dumps({"record": record.to_json()}) + "\n")
        events.flush()
    return 0


def _first(job: Job, events: IO[str], settings: RunSettings) -> Record:
    from bench.costs.measure import reuse_freed_memory
    from bench.pipeline.cache import clear_scratch
    from bench.pipeline.run import run_cell

    def emit(phase: str, done: int, all_: int) -> None:
        events.write(json.dumps({"phase": phase, "done": done, "all": all_}) + "\n")

    reuse_freed_memory()
    record = _attempt(job, lambda: run_cell(job, emit, settings))
    # A killed process keeps its checkpoints. After a full disk they are useful again, too.
    if record.error is not None and record.error.kind != "disk":
        clear_scratch(job)
    return record


def _other(job: Job, settings: RunSettings) -> Record | None:
    """Trains in the other processes of a cell; returns a record only of a failure."""
    from bench.pipeline.fit import fit_cell

    result = _attempt(job, lambda: fit_cell(job, lambda *_: None, True, settings))
    if not isinstance(result, Record) or result.error is None:
        return None
    # Short enough for one atomic write to the pipe, which the first process also writes to.
    return failed(job, result.error.kind, result.error.message[:500])


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
    # safetensors states the number only in its text.
    errno_text = re.search(r"\(os error (\d+)\)", text)
    number = getattr(error, "errno", None) or (errno_text and int(errno_text[1]))
    full = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
    return "disk" if number in full else "error"


def _trace() -> str:
    return traceback.format_exc()[-4000:]


def _die_with_driver() -> Any:
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(child_main())
