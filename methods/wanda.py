"""Wanda: weights times input norms (arXiv 2306.11695).

S_ij = |W_ij|·‖X_j‖₂, the smallest of every output row go; no weight is updated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from bench.api import Field, parameters
from methods.shared.input_statistics import ColumnNorms, wanda_scores
from methods.shared.masks import keep_largest, keep_largest_per_row, keep_n_m, keep_spread
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

if TYPE_CHECKING:
    pass


class Wanda(OneShot):
    """Per-row magnitude pruning in the metric of the inputs."""

    name: ClassVar[str] = "wanda"
    summary: ClassVar[str] = "Prunes each row by weight size × input norm."
    paper: ClassVar[str] = "arXiv 2306.11695, ICLR"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2

    @parameters
    class Params(ReconstructParams):
        """What competes with what."""

        use_variant: bool = Field(
            default=False,
            description="whether rows lose equal shares of score, not equal numbers of weights",
        )
        compat: Literal["paper", "reference"] = Field(
            default="paper", description="reference rounds the count of every row down"
        )

    params: Params

    statistic = ColumnNorms

    @property
    def promises_sparsity(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the counted sparsity is the cell's: the reference rounds down."""
        return self.params.compat == "paper"

    def pruned(self, weight: Tensor, statistic: ColumnNorms, k: int) -> Tensor:
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
    """Returns the variant's keep mask: a row loses its smallest scores up to a share α of its sum.

    The paper bisects α until the sparsity fits. A weight goes as soon as α reaches the share of
    its row that it completes, so the k smallest of those shares are the same answer, and exact.
    """
    ordered, places = scores.sort(dim=1, stable=True)
    total = ordered.sum(dim=1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    keep = keep_largest(ordered.cumsum(dim=1) / total, k)
    return torch.empty_like(keep).scatter_(1, places, keep)
