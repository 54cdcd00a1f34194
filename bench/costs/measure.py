"""What a run really took: memory, and the latency of forward passes.

Models that are compared take turns pass by pass, so that whatever else the machine does hits all
alike: the ratio of their medians is what counts, the milliseconds are for orientation.
"""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

WARMUP = 2

T = TypeVar("T")


def peak_bytes(device: torch.device) -> int:
    """Returns this process's peak resident bytes, or its peak allocation on an accelerator.

    A cell runs in a process of its own, so this is the cell's own peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux hands ru_maxrss on from the parent; the high-water mark is this process's own.
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.no_grad()
def latency(
    models: Sequence[PreTrainedModel], batch: int, length: int, turns: int, seconds: float
) -> list[list[float]]:
    """Seconds of forward passes of `batch` × `length` random tokens, a list a model.

    Args:
        models: in eval mode, on one device; they take turns.
        batch: sequences.
        length: tokens a sequence, none padded.
        turns: at most so many timed passes of each, after `WARMUP` untimed ones.
        seconds: stop after so many, but not before three turns.
    """
    first = models[0]
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(first.config.vocab_size)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(first.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    for turn in range(WARMUP + turns):
        for model, taken in zip(models, times, strict=True):
            _finished(first.device)
            start = time.perf_counter()
            model(**inputs)
            _finished(first.device)
            if turn >= WARMUP:
                taken.append(time.perf_counter() - start)
        if turn >= WARMUP + 2 and time.perf_counter() - started > seconds:
            break
    return times


def p50_p95(times: Sequence[float]) -> tuple[float, float]:
    """Returns median and 95th percentile, linearly interpolated."""
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double())
    return float(p50), float(p95)


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function of a module in a new process and returns its result."""
    # A pool a call: one pool with `max_tasks_per_child` can deadlock between two tasks.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def reuse_freed_memory() -> None:
    """Keeps glibc from handing freed tensors back to the system at every step.

    By default blocks above 128 kB come and go as fresh pages, and faulting them in again costs a
    training step more than its elementwise arithmetic. Elsewhere (macOS, musl) this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, 32 * 2**20)  # the largest that glibc takes
    mallopt(trim_threshold, 2**31 - 1)
