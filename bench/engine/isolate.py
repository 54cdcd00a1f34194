"""Runs each cell in its own process, so that the driver gets an outcome whatever happens there.

The cell's process reads its cell from standard input and answers in JSON lines on standard output.
The log takes all that libraries print. The driver keeps the standard input open. If the driver dies
in any way, the cell's process reads the end of the input and kills its own process group.

The processes are forked off one that has imported the libraries, which takes longer than a small
cell. Where there is an accelerator, each starts anew, because a driver's state survives no fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.core.record import Record
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.engine import child
from bench.engine.messages import failed, parse_message
from bench.planning.job import Job

OnProgress = Callable[[str, int, int], None]

_live: set[BaseProcess] = set()
_kills = 0  # how often all cells have been killed


@functools.cache
def _processes() -> BaseContext:
    import torch

    if torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.engine.preload"])
    return context


def warm_up() -> None:
    """Starts to import the libraries for the first cell, in the background."""
    if _processes().get_start_method() == "forkserver":
        forkserver.ensure_running()


def run_isolated(
    job: Job,
    timeout_s: float,
    log: Path,
    on_progress: OnProgress,
    env: Mapping[str, str] | None = None,
    settings: RunSettings = DEFAULTS,
) -> Record:
    """Runs a cell in its own process group and returns its record, done or failed.

    A training that runs out of memory runs once more, with batches in twice as many pieces.

    Args:
        job: the cell to run.
        timeout_s: seconds after which the group is killed, for both tries together.
        log: file for the output of the child.
        on_progress: called with (phase, done, all).
        env: additions to the child's environment.
        settings: number of processes and of pieces of a batch.
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
    if settings.accumulate == 1:  # the first try
        log.write_bytes(b"")
    kills = _kills
    orders, our_orders = _processes().Pipe(duplex=False)
    our_answers, answers = _processes().Pipe(duplex=False)
    process: BaseProcess = _processes().Process(  # type: ignore[attr-defined]
        target=child.enter, args=(orders, answers, str(log), {**os.environ, **(env or {})})
    )
    process.start()
    _live.add(process)
    orders.close()
    answers.close()
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(process)

    timer = threading.Timer(max(timeout_s, 0.0), expire)
    timer.start()
    if kills != _kills:  # while it started
        _kill(process)
    ooms = _kernel_ooms()
    outcome: Record | None = None
    order = job.order | {"settings": asdict(settings), "rank": 0}
    try:
        with contextlib.suppress(BrokenPipeError):
            os.write(our_orders.fileno(), json.dumps(order).encode() + b"\n")
        with os.fdopen(our_answers.fileno(), encoding="utf-8", closefd=False) as lines:
            for line in lines:
                message = parse_message(line)
                if isinstance(message, Record):
                    outcome = message
                    break  # if one of several processes failed, the others still wait for it
                if message is not None:
                    on_progress(*message)
            else:
                process.join()  # it has ended by itself: its exit code tells how
    finally:
        timer.cancel()
        _kill(process)
        process.join()
        _live.discard(process)
        our_orders.close()
        our_answers.close()
    if outcome is not None:
        return outcome
    tail = _tail(log)
    if expired.is_set():
        return failed(job, "timeout", f"stopped after {timeout_s:g} s", tail)
    status = process.exitcode
    assert status is not None
    if status < 0:
        name = signal.Signals(-status).name
        if status == -signal.SIGKILL and _kernel_ooms() > ooms:
            return failed(job, "oom", "the kernel ended the cell's process: no memory", tail)
        return failed(job, "killed", f"the cell's process was ended by {name}", tail)
    return failed(job, "error", f"the cell's process left with code {status}", tail)


def _kernel_ooms() -> int:
    """Counts processes that Linux has killed for lack of memory since it started; else 0."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def kill_all() -> None:
    """Kills every running cell with all its processes; their threads then return failures."""
    global _kills
    _kills += 1
    for process in list(_live):
        _kill(process)


def _kill(process: BaseProcess) -> None:
    """Kills a process and its group, and leaves it to its own thread: only one may wait for it."""
    assert process.pid is not None
    # Itself, too: it may not lead its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process.pid, signal.SIGKILL)


def _tail(log: Path, size: int = 4000) -> str:
    data = log.read_bytes()[-size:]
    return data.decode("utf-8", "replace")
