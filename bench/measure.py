"""What a run really took: memory. Latency comes with the cost accounting."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

import torch


def peak_bytes(device: torch.device) -> int:
    """Highest resident memory of this process, or highest allocation on an accelerator, in bytes.

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
