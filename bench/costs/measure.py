"""Measures the memory of a run and the latency of forward passes.

Compared models take turns pass by pass, so that other load on the machine affects all of them
alike. Compare the median of their paired ratios; the milliseconds serve for orientation.
"""

from __future__ import annotations

import ctypes
import logging
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from bench.core.errors import one_line

log = logging.getLogger(__name__)

WARMUP = 2

T = TypeVar("T")


def peak_bytes(device: torch.device) -> int:
    """Returns the highest resident memory of this process in bytes; on a GPU, its allocation.

    Each cell runs in its own process, so this is the peak of the cell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux a process inherits ru_maxrss from its parent, but not the high-water mark.
    status = Path("/proc/self/status")
    if status.is_file() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.no_grad()
def latency(
    models: Sequence[PreTrainedModel], batch: int, length: int, turns: int, seconds: float
) -> list[list[float]]:
    """Times forward passes of `batch` × `length` random tokens.

    On a GPU the passes are replayed from CUDA graphs, as servers run fixed shapes. Otherwise small
    models would be timed by the launches of their kernels: cuSPARSELt plans each 2:4 product anew,
    up to 1 ms a product on an H100, where the product itself takes 0.02 to 0.6 ms.

    Args:
        models: models in eval mode on one device; they take turns.
        batch: sequences a pass.
        length: tokens a sequence, without padding.
        turns: maximum of timed passes of each model, after `WARMUP` untimed ones.
        seconds: time limit in seconds; three turns are always timed.

    Returns:
        A list of seconds for each model.
    """
    first = models[0]
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(first.config.vocab_size)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(first.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    passes: list[Callable[[], Any]] = [partial(model, **inputs) for model in models]
    if first.device.type == "cuda":
        passes = _captured(passes)
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    for turn in range(WARMUP + turns):
        for run, taken in zip(passes, times, strict=True):
            _finished(first.device)
            start = time.perf_counter()
            run()
            _finished(first.device)
            if turn >= WARMUP:
                taken.append(time.perf_counter() - start)
        if turn >= WARMUP + 2 and time.perf_counter() - started > seconds:
            break
    return times


def _captured(passes: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Returns replays of the passes, or all of them unchanged where one cannot be captured."""
    replays: list[Callable[[], Any]] = []
    for run in passes:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as error:  # a pass that asks for values, as some experts' routing does
            log.warning("passes are timed without CUDA graphs: %s", one_line(error))
            return list(passes)
        replays.append(graph.replay)
    return replays


def p50_p95(times: Sequence[float]) -> tuple[float, float]:
    """Returns the median and the 95th percentile, linearly interpolated."""
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double())
    return float(p50), float(p95)


def paired_quartiles(times: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    """Returns the quartiles of the ratios times / others, each of two passes of one turn.

    What slows both passes of a turn leaves their ratio alone, but not a ratio of two medians.
    """
    ratios = torch.tensor(times, dtype=torch.float64) / torch.tensor(others, dtype=torch.float64)
    return tuple(ratios.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist())


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a module's function in a new process and returns its result; the process then ends."""
    # One pool a call, because a pool with `max_tasks_per_child` can deadlock between two tasks.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def reuse_freed_memory() -> None:
    """Stops glibc from returning the memory of freed tensors to the system at each step.

    By default, blocks above 128 kB are mapped as fresh pages each time. The page faults then cost a
    training step more than its elementwise arithmetic. Without glibc (macOS, musl) this does
    nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, 32 * 2**20)  # the largest value that glibc accepts
    mallopt(trim_threshold, 2**31 - 1)
