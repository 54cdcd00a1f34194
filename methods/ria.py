"""RIA: relative importance and activations (ICLR'24; methods/README.md, ria).

    S_ij = ( |W_ij|/Σ_k|W_kj| + |W_ij|/Σ_k|W_ik| ) · ‖X_j‖₂^a

N:M groups are consecutive inputs: a channel permutation would have to be stored with the model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.api import Field, parameters
from methods.shared.blockwise import ColumnNorms
from methods.shared.masks import keep_largest, keep_n_m, keep_spread
from methods.shared.one_shot import OneShot


class RIA(OneShot):
    """A weight counts by its share of its row and of its column."""

    name: ClassVar[str] = "ria"
    summary: ClassVar[str] = (
        "Prunes by a weight's share of its row and column × a power of its input norm."
    )
    paper: ClassVar[str] = "ICLR"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2

    @parameters
    class Params:
        """The paper's."""

        a: float = Field(
            default=0.5, ge=0, description="power of the input norms; 0 leaves them out"
        )
        pool: Literal["layer", "row"] = Field(
            default="layer", description="where weights compete; N:M always competes in its groups"
        )

    params: Params

    statistic = ColumnNorms

    def pruned(self, weight: Tensor, statistic: ColumnNorms, k: int) -> Tensor:
        """Zeroes the smallest scores."""
        scores = ria_scores(weight, statistic.norms, self.params.a)
        if self.n_m:
            keep = keep_n_m(scores, *self.n_m)
        else:
            keep = (keep_spread if self.params.pool == "row" else keep_largest)(scores, k)
        return weight.masked_fill(~keep, 0.0)


def ria_scores(weight: Tensor, norms: Tensor, a: float) -> Tensor:
    """Returns relative importance times activations, (out, in); 0 in rows and columns of zeros."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    column = size.sum(dim=0, keepdim=True).clamp(min=tiny)
    row = size.sum(dim=1, keepdim=True).clamp(min=tiny)
    scores: Tensor = (size / column + size / row) * norms**a
    return scores
