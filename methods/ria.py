"""RIA: relative importance and activations (ICLR'24; methods/README.md, ria).

    S_ij = ( |W_ij|/Σ_k|W_kj| + |W_ij|/Σ_k|W_ik| ) · ‖X_j‖₂^a

N:M groups are consecutive inputs: a channel permutation would have to be stored with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError
from methods.shared.blockwise import ColumnNorms, OneShot
from methods.shared.masks import keep_largest, keep_n_m, keep_spread


class RIA(OneShot):
    """A weight counts by its share of its row and of its column."""

    name: ClassVar[str] = "ria"

    @dataclass(frozen=True)
    class Params:
        """Defaults are the paper's.

        Attributes:
            a: power of the input norms; 0 leaves them out (the paper's RI).
            pool: where weights compete: `layer` or `row`.
        """

        a: float = 0.5
        pool: str = "layer"

    statistic = ColumnNorms

    def __init__(self, params=None) -> None:
        super().__init__(params)
        if self.params.pool not in ("layer", "row"):
            raise BenchError(f"ria: pool is 'layer' or 'row', not {self.params.pool!r}")

    def pruned(self, weight: Tensor, statistic, k: int) -> Tensor:
        """Zeroes the smallest scores."""
        scores = ria_scores(weight, statistic.norms, self.params.a)
        if self.n_m:
            keep = keep_n_m(scores, *self.n_m)
        else:
            keep = (keep_spread if self.params.pool == "row" else keep_largest)(scores, k)
        return weight.masked_fill(~keep, 0.0)


def ria_scores(weight: Tensor, norms: Tensor, a: float) -> Tensor:
    """Relative importance times activations, (out, in); 0 in rows and columns of zeros."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    column = size.sum(dim=0, keepdim=True).clamp(min=tiny)
    row = size.sum(dim=1, keepdim=True).clamp(min=tiny)
    return (size / column + size / row) * norms**a
