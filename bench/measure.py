"""What a run really took: memory. Latency comes with the cost accounting."""

from __future__ import annotations

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """Highest resident memory of this process, or highest allocation on an accelerator, in bytes.

    A cell runs in a process of its own, so this is the cell's own peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
