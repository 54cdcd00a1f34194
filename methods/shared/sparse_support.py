"""Where a sparse update may move: the support Ω (methods/README.md, dsee).

Greedy bilateral decomposition (GreBsmo, AISTATS'13) writes W ≈ UV + S with a rank that grows from
round to round; Ω is where |W − UV| is largest at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from bench.api import BenchError
from methods.shared.masks import keep_largest

ROUNDS = 100
THRESHOLD = 0.01
FULL_RANK = 496


def last_rank(shape: tuple[int, int]) -> int:
    """Returns the rank of the last round: the reference's 496; half of the smaller side below 512.

    The reference's rank makes W − UV vanish on small matrices, and Ω the whole matrix.
    """
    small = min(shape)
    return FULL_RANK if small >= 512 else max(small // 2, 1)


def residual(weight: Tensor, start: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Returns W − UV after the last round, before thresholding.

    Args:
        weight: (out, in).
        start: (1, in), the first V, drawn from N(0, 1).
        rounds: outer rounds; the rank grows evenly from 1 to `last_rank`.

    Returns:
        (out, in).
    """
    last = last_rank((weight.shape[0], weight.shape[1]))
    ranks = [1 + k * (last - 1) // max(rounds - 1, 1) for k in range(rounds)]
    V, left = start, weight
    for k in range(rounds):
        low = weight  # S = 0 at the start of every round
        for _ in range(2):
            U = torch.linalg.qr(low @ V.T).Q
            V = U.T @ low
            left = torch.addmm(weight, U, V, alpha=-1.0)
            large = hardshrink(left, THRESHOLD)
            low = weight - large
        if k + 1 < rounds and (grow := ranks[k + 1] - ranks[k]):
            # The first g rows of R in E = QR need only the first g columns' Q, not all of QR(E).
            small = left - large
            V = torch.cat([V, torch.linalg.qr(small[:, :grow]).Q.T @ small])
    return left


def limit(weight: Tensor) -> Tensor:
    """Returns what `residual` does, as if each step had converged: U from an SVD, no start vector.

    Ten times as fast; shares as many places with a run of `residual` as two runs share.
    """
    rank = last_rank((weight.shape[0], weight.shape[1]))
    left = low = weight
    for _ in range(2):
        U = torch.linalg.svd(low, full_matrices=False).U[:, :rank]
        left = torch.addmm(weight, U, U.T @ low, alpha=-1.0)
        low = weight - hardshrink(left, THRESHOLD)
    return left


def places(weight: Tensor, n: int, how: str, rng: torch.Generator | None) -> Tensor:
    """Returns Ω: exactly `n` positions of a matrix.

    Args:
        weight: (out, in).
        n: how many.
        how: `bilateral` (the largest |W − UV|), `svd` (the same in the limit), `magnitude` (the
            largest |W|) or `random`.
        rng: draws V, or the positions.

    Returns:
        (2, n): rows and columns.

    Raises:
        BenchError: an unknown `how`, or more positions than the matrix has.
    """
    if not 0 <= n <= weight.numel():
        raise BenchError(f"a support of {n} does not fit into {tuple(weight.shape)}")
    if how == "random" or (weight.is_meta and how in ("bilateral", "svd", "magnitude")):
        # Without values any places will do: they are counted only.
        flat = torch.randperm(weight.numel(), generator=rng)[:n].to(weight.device)
    elif how in ("bilateral", "svd", "magnitude"):
        left = weight = weight.detach().float().contiguous()
        if how == "bilateral" and n:
            start = torch.randn(1, weight.shape[1], generator=rng)
            left = residual(weight, start.to(weight.device))
        elif how == "svd" and n:
            left = limit(weight)
        flat = keep_largest(left.abs(), weight.numel() - n).flatten().nonzero()[:, 0]
    else:
        raise BenchError(f"omega is 'bilateral', 'svd', 'magnitude' or 'random', not {how!r}")
    assert flat.numel() == n
    return torch.stack([flat // weight.shape[1], flat % weight.shape[1]])
