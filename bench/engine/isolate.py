"""One subprocess a cell: whatever happens in there, the driver gets an outcome.

The child is told its cell on standard input and answers in JSON lines on standard output; all that
libraries print goes to the log. The driver keeps the child's standard input open: when the driver
dies, however it dies, the child reads the end of it and stops its own process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from bench.core.record import Record
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.engine.messages import COMMAND, failed, parse_message
from bench.planning.job import Job

OnProgress = Callable[[str, int, int], None]

_live: set[subprocess.Popen[str]] = set()


def run_isolated(
    job: Job,
    timeout_s: float,
    log: Path,
    on_progress: OnProgress,
    env: Mapping[str, str] | None = None,
    settings: RunSettings = DEFAULTS,
) -> Record:
    """Runs a cell in a process group of its own and returns its record, done or failed.

    A training that runs out of memory gets one more try, with its batches in twice the pieces.

    Args:
        job: the cell to run.
        timeout_s: seconds after which the group is killed, both tries taken together.
        log: file that takes what the child prints.
        on_progress: called with (phase, done, all).
        env: additions to the child's environment.
        settings: batches in pieces, several devices.
    """
    phases = [""]

    def watch(phase: str, done: int, all_: int) -> None:
        phases.append(phase)
        on_progress(phase, done, all_)

    end = time.monotonic() + timeout_s
    record = _try(job, settings, timeout_s, log, watch, env)
    oom = record.error is not None and record.error.kind == "oom"
    if not oom or phases[-1] != "train" or job.budget.batch <= settings.processes:
        return record
    halved = replace(settings, accumulate=2 * settings.accumulate)
    record = _try(job, halved, end - time.monotonic(), log, watch, env)
    if record.error is None:
        return record
    message = f"{record.error.message} (the second try, after an oom, with batches in two pieces)"
    return failed(job, record.error.kind, message, record.error.log_tail)


def _try(
    job: Job,
    settings: RunSettings,
    timeout_s: float,
    log: Path,
    on_progress: OnProgress,
    env: Mapping[str, str] | None,
) -> Record:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w" if settings.accumulate == 1 else "a", encoding="utf-8") as sink:
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
            order = {
                "cell": job.cell.model_dump(mode="json"),
                "settings": asdict(settings),
                "rank": 0,
            }
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            told = parse_message(line)
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
        return failed(job, "timeout", f"stopped after {timeout_s:g} s", tail)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        if child.returncode == -signal.SIGKILL and _kernel_ooms() > ooms:
            return failed(job, "oom", "the kernel ended the cell's process: no memory", tail)
        return failed(job, "killed", f"the cell's process was ended by {name}", tail)
    return failed(job, "error", f"the cell's process left with code {child.returncode}", tail)


def _kernel_ooms() -> int:
    """Processes that Linux has killed for want of memory since it started; 0 elsewhere."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


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
