"""Whether weights hold a pattern, and what hardware makes of it."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.weights.targets import Target, prunable


def density(target: Target) -> float:
    """Fraction of a target's weights that are not exactly zero."""
    return int(torch.count_nonzero(target.stored)) / target.stored.numel()


def holds(weight: Tensor, pattern: str) -> bool:
    """Whether `weight`: (out, in) has the pattern; patterns without a local rule always hold."""
    if match := re.fullmatch(r"(\d+):(\d+)", pattern):
        kept, group = int(match[1]), int(match[2])
        if weight.shape[1] % group:
            return False
        nonzero = weight.reshape(-1, group).count_nonzero(dim=1)
        return bool((nonzero <= kept).all())
    if match := re.fullmatch(r"(block:\d+x\d+)\+neurons", pattern):
        rows, columns = weight.shape
        units = (match[1], f"block:1x{columns}", f"block:{rows}x1")
        return any(holds(weight, unit) for unit in units)
    if pattern == "rows":
        return holds(weight, f"block:1x{weight.shape[1]}")
    if match := re.fullmatch(r"block:(\d+)x(\d+)", pattern):
        rows, columns = int(match[1]), int(match[2])
        if weight.shape[0] % rows or weight.shape[1] % columns:
            return False
        tiles = weight.unfold(0, rows, rows).unfold(1, columns, columns)
        nonzero = tiles.count_nonzero(dim=(-1, -2))
        return bool(((nonzero == 0) | (nonzero > rows * columns // 2)).all())
    return True


def halved(model: PreTrainedModel, pattern: str) -> list[Target]:
    """Targets that torch's 2:4 kernels take: two of four kept at most, in tiles of 32×64."""
    fits = re.fullmatch(r"[12]:4", pattern) is not None
    return [t for t in prunable(model) if fits and not t.shape[0] % 32 and not t.shape[1] % 64]


def has_kernel(device: torch.device) -> bool:
    """Whether torch multiplies 2:4 matrices there: in 16 bits, from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
