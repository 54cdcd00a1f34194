"""The facts about a weight's zeros that decide its layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.formats.integer_coding import LARGEST
from bench.formats.safetensors_file import dtype_name

GROUPS = (2, 4, 8, 16, 32)
"""Group sizes M of the N:M patterns that are searched for."""


@dataclass(frozen=True)
class Zeros:
    """The facts about a weight that decide its layout.

    Attributes:
        shape: (out, in).
        dtype: dtype of the weight, as a safetensors file names it.
        nonzero: number of elements that are not zero.
        nm: (N, M) of the N:M pattern that the weight has; None for no pattern.
    """

    shape: tuple[int, int]
    dtype: str
    nonzero: int
    nm: tuple[int, int] | None


def zeros_of(weight: Tensor, groups: Sequence[int] = GROUPS) -> Zeros:
    """Counts the zeros of `weight` (out, in) and finds its N:M pattern.

    The weight has the pattern N:M if each group of M neighbouring inputs keeps at most N, N is at
    most 3/4 of M, and at least 3/4 of all N-per-group positions are in use. Zeros without a
    pattern do not meet these conditions. M is the smallest such size in `groups`. Patterns with
    more than `LARGEST` arrangements are ignored, because a bitmap is about as small.
    """
    keep = weight != 0
    nonzero = int(keep.count_nonzero())
    rows, columns = keep.shape
    n_m = None
    for m in sorted(groups, reverse=True):
        if columns % m == 0:
            n = int(keep.view(-1, m).sum(dim=1, dtype=torch.uint8).max())
            holds = 0 < 4 * n <= 3 * m and 4 * m * nonzero >= 3 * n * keep.numel()
            if holds and math.comb(m, n) <= LARGEST:
                n_m = n, m
    return Zeros((rows, columns), dtype_name(weight.dtype), nonzero, n_m)
