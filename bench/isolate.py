"""One subprocess a cell: whatever happens in there, the driver gets an outcome.

The child is told its cell on standard input and answers in JSON lines on standard output; all that
libraries print goes to the log. The driver keeps the child's standard input open: when the driver
dies, however it dies, the child reads the end of it and stops its own process group.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from bench import parallel, plan, provenance, registry
from bench.api import BenchError, Cell, Outcome
from bench.parallel import ALONE, Means
from bench.record import Failure, Record

T = TypeVar("T")
OnProgress = Callable[[str, int, int], None]
COMMAND = [sys.executable, "-m", "bench.isolate"]

_live: set[subprocess.Popen[str]] = set()


def run_isolated(
    cell: Cell,
    timeout_s: float,
    log: Path,
    on_progress: OnProgress,
    env: Mapping[str, str] | None = None,
    means: Means = ALONE,
) -> Record:
    """Runs a cell in a process group of its own and returns its record, done or failed.

    A training that runs out of memory gets one more try, with its batches in twice the pieces.

    Args:
        cell: what to run.
        timeout_s: seconds after which the group is killed, both tries taken together.
        log: file that takes what the child prints.
        on_progress: called with (phase, done, all).
        env: additions to the child's environment.
        means: batches in pieces, several devices.
    """
    phases = [""]

    def watch(phase: str, done: int, all_: int) -> None:
        phases.append(phase)
        on_progress(phase, done, all_)

    end = time.monotonic() + timeout_s
    record = _try(cell, means, timeout_s, log, watch, env)
    oom = record.error is not None and record.error.kind == "oom"
    if not oom or phases[-1] != "train" or plan.budget_of(cell).batch <= means.processes:
        return record
    halved = replace(means, accumulate=2 * means.accumulate)
    record = _try(cell, halved, end - time.monotonic(), log, watch, env)
    if record.error is None:
        return record
    message = f"{record.error.message} (the second try, after an oom, with batches in two pieces)"
    return failed(cell, record.error.kind, message, record.error.log_tail)


def _try(
    cell: Cell,
    means: Means,
    timeout_s: float,
    log: Path,
    on_progress: OnProgress,
    env: Mapping[str, str] | None,
) -> Record:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w" if means.accumulate == 1 else "a", encoding="utf-8") as sink:
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    _live.add(child)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(child)

    timer = threading.Timer(max(timeout_s, 0.0), expire)
    timer.start()
    ooms = _kernel_ooms()
    outcome: Record | None = None
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            job = {"cell": cell.model_dump(mode="json"), "means": asdict(means), "rank": 0}
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            told = _told(line)
            if isinstance(told, Record):
                outcome = told
                break  # one of several processes may have failed, and the others wait for it
            if told is not None:
                on_progress(*told)
        else:
            child.wait()
    finally:
        timer.cancel()
        _kill(child)
        _live.discard(child)
    if outcome is not None:
        return outcome
    tail = _tail(log)
    if expired.is_set():
        return failed(cell, "timeout", f"stopped after {timeout_s:g} s", tail)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        if child.returncode == -signal.SIGKILL and _kernel_ooms() > ooms:
            return failed(cell, "oom", "the kernel ended the cell's process: no memory", tail)
        return failed(cell, "killed", f"the cell's process was ended by {name}", tail)
    return failed(cell, "error", f"the cell's process left with code {child.returncode}", tail)


def _told(line: str) -> Record | tuple[str, int, int] | None:
    """A record, or (phase, done, all); None for what a process that was killed has left unsaid."""
    try:
        event = json.loads(line)
        if "record" in event:
            return Record.model_validate_json(event["record"])
        return str(event["phase"]), int(event["done"]), int(event["all"])
    except (ValueError, TypeError, KeyError):
        return None


def _kernel_ooms() -> int:
    """Processes that Linux has killed for want of memory since it started; 0 elsewhere."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def failed(cell: Cell, kind: Outcome, message: str, tail: str = "") -> Record:
    """The record of a failure."""
    return Record(
        cell=cell,
        key=cell.key,
        versions=plan.versions_of(cell),
        status="failed",
        code=provenance.code(registry.method(cell.method)),
        error=Failure(kind=kind, message=message[:2000], log_tail=tail[-4000:]),
        time=provenance.now(),
    )


def kill_all() -> None:
    """Ends every running cell with all its processes."""
    for child in list(_live):
        _kill(child)


def _kill(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(log: Path, size: int = 4000) -> str:
    data = log.read_bytes()[-size:]
    return data.decode("utf-8", "replace")


def child_main() -> int:
    """Entry of the subprocess."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, prints to the log
    job = json.loads(sys.stdin.readline())
    cell = Cell.model_validate(job["cell"])
    threading.Thread(target=_die_with_driver, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("bench", "methods", "tasks"):
        logging.getLogger(package).setLevel(logging.INFO)
    means = Means(**job["means"])
    if means.processes > 1 and job["rank"] == 0:
        parallel.start_others(job, means.processes, COMMAND, events)
    record = _first(cell, events, means) if job["rank"] == 0 else _other(cell, means)
    if record is not None:
        events.write(json.dumps({"record": record.to_json()}) + "\n")
        events.flush()
    return 0


def _first(cell: Cell, events: IO[str], means: Means) -> Record:
    from bench.fitting import clear_scratch
    from bench.measure import reuse_freed_memory
    from bench.run import run_cell

    def emit(phase: str, done: int, all_: int) -> None:
        events.write(json.dumps({"phase": phase, "done": done, "all": all_}) + "\n")

    reuse_freed_memory()
    record = _attempt(cell, lambda: run_cell(cell, emit, means))
    # A process that is killed leaves its checkpoints; with a full disk they may serve again, too.
    if record.error is not None and record.error.kind != "disk":
        clear_scratch(cell)
    return record


def _other(cell: Cell, means: Means) -> Record | None:
    """What the other processes of a cell do: they train along, and tell only what goes wrong."""
    from bench.fitting import fit_cell

    found = _attempt(cell, lambda: fit_cell(cell, lambda *_: None, True, means))
    if not isinstance(found, Record) or found.error is None:
        return None
    # Short enough to be written in one go, into the pipe that the first process writes to.
    return failed(cell, found.error.kind, found.error.message[:500])


def _attempt(cell: Cell, work: Callable[[], T]) -> T | Record:
    try:
        return work()
    except BenchError as error:
        return failed(cell, error.kind, str(error))
    except Exception as error:
        traceback.print_exc()
        return failed(cell, _kind(error), f"{type(error).__name__}: {error}", _trace())


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
