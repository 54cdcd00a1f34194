"""SLoRB: a low-rank branch that starts as a fit of what was pruned (arXiv 2407.20584)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.api import BenchError


def slorb(
    pruned: Tensor, k: int, init: str, rng: torch.Generator, name: str = "the matrix"
) -> tuple[Tensor, Tensor]:
    """Returns SLoRB's X: (in/k, in) and Q: (out, in/k), with Q·X standing in for what was pruned.

    Args:
        pruned: (1 − m)⊙W, (out, in).
        k: inputs a column of Q stands for.
        init: `mean` (the least-squares fit, given the block indicator X), `sum`, or `xavier`.
        rng: draws X for `xavier`.
        name: for the message.

    Raises:
        BenchError: the width is not divisible by `k`.
    """
    rows, width = pruned.shape
    if width % k:
        raise BenchError(
            f"method ast: slorb_k {k}: {name} has {width} inputs, not a multiple of {k}"
        )
    if init == "xavier":
        X = torch.empty(width // k, width)
        nn.init.xavier_uniform_(X, generator=rng)
        return X.to(pruned), pruned.new_zeros(rows, width // k)
    X = torch.eye(width // k).repeat_interleave(k, dim=1).to(pruned)
    blocks = pruned.view(rows, width // k, k)
    return X, blocks.mean(dim=2) if init == "mean" else blocks.sum(dim=2)
