"""Wanda: weights times input norms (arXiv 2306.11695).

S_ij = |W_ij|·‖X_j‖₂, the smallest of every output row go; no weight is updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError
from methods.shared.blockwise import ColumnNorms, OneShot, wanda_scores
from methods.shared.masks import keep_largest, keep_largest_per_row, keep_n_m, keep_spread


class Wanda(OneShot):
    """Per-row magnitude pruning in the metric of the inputs."""

    name: ClassVar[str] = "wanda"

    @dataclass(frozen=True)
    class Params:
        """What competes with what.

        Attributes:
            use_variant: a row loses as much of its score, not as many weights, as any other.
            compat: `reference` rounds every row's count down, so a matrix whose width times
                sparsity is no integer is less sparse than asked.
        """

        use_variant: bool = False
        compat: str = "paper"

    def __init__(self, params=None) -> None:
        super().__init__(params)
        if self.params.compat not in ("paper", "reference"):
            raise BenchError(f"wanda: compat is 'paper' or 'reference', not {self.params.compat!r}")
        self.promises_sparsity = self.params.compat == "paper"

    statistic = ColumnNorms

    def attach(self, model, ctx) -> None:
        """Prunes all targets, block by block."""
        self.sparsity = ctx.cell.sparsity
        super().attach(model, ctx)

    def pruned(self, weight: Tensor, statistic, k: int) -> Tensor:
        """Zeroes the smallest scores of every row."""
        scores = wanda_scores(weight, statistic.norms)
        if self.n_m:
            keep = keep_n_m(scores, *self.n_m)
        elif self.params.use_variant:
            keep = keep_equal_loss(scores, k)
        elif self.params.compat == "reference":
            keep = keep_largest_per_row(scores, int(weight.shape[1] * self.sparsity))
        else:
            keep = keep_spread(scores, k)
        return weight.masked_fill(~keep, 0.0)


def keep_equal_loss(scores: Tensor, k: int) -> Tensor:
    """Keep mask of the variant: every row loses its smallest scores up to a share α of its sum.

    The paper bisects α until the sparsity fits. A weight goes as soon as α reaches the share of
    its row that it completes, so the k smallest of those shares are the same answer, and exact.
    """
    ordered, places = scores.sort(dim=1, stable=True)
    total = ordered.sum(dim=1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    keep = keep_largest(ordered.cumsum(dim=1) / total, k)
    return torch.empty_like(keep).scatter_(1, places, keep)
