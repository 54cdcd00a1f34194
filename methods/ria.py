"""RIA: relative importance and activations (ICLR'24; methods/README.md, ria).

    S_ij = ( |W_ij|/Σ_k|W_kj| + |W_ij|/Σ_k|W_ik| ) · ‖X_j‖₂^a

N:M groups are consecutive inputs. `permute=folded` first reorders the inputs that can be reordered
for nothing, FFN neurons and the values of a head, so that the groups keep more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from bench.api import BenchError, Budget, Cell, Context, Field, Setting, grid, parameters
from bench.weights.targets import Target
from methods.shared.input_statistics import ColumnNorms
from methods.shared.masks import keep_largest, keep_n_m, keep_spread
from methods.shared.one_shot import OneShot
from methods.shared.permutation import Channels, best_order, check, foldable
from methods.shared.reconstruct import ReconstructParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RIA(OneShot):
    """A weight counts by its share of its row and of its column."""

    name: ClassVar[str] = "ria"
    summary: ClassVar[str] = (
        "Prunes by a weight's share of its row and column × a power of its input norm."
    )
    paper: ClassVar[str] = "ICLR"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2
    search: ClassVar[tuple[Setting, ...]] = grid(a=(0.5, 0.0, 0.25, 1.0), pool=("layer", "row"))

    @parameters
    class Params(ReconstructParams):
        """The paper's."""

        a: float = Field(
            default=0.5, ge=0, description="power of the input norms; 0 leaves them out"
        )
        pool: Literal["layer", "row"] = Field(
            default="layer", description="where weights compete; N:M always competes in its groups"
        )
        permute: Literal["none", "folded"] = Field(
            default="none",
            description="folded reorders neurons and the values of each head before N:M groups are "
            "formed, in all matrices that make or read them; inference costs the same",
        )

    params: Params

    statistic = ColumnNorms

    def check(self, cell: Cell, budget: Budget) -> None:
        """Refuses a permutation where no groups are formed."""
        if self.params.permute != "none" and not cell.pattern.n_m:
            raise BenchError(
                f"method ria: permute {self.params.permute}: it is for N:M as 2:4, "
                f"not for {cell.pattern}"
            )

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Prunes all targets, block by block."""
        self.channels: dict[str, list[Channels]] = {}
        n_m = ctx.cell.pattern.n_m
        if n_m and self.params.permute == "folded":
            self.channels = foldable(model, n_m[1])
            check(model, n_m[1], next(iter(ctx.calibration())))
        super().attach(model, ctx)

    def prepare(self, target: Target, statistic: ColumnNorms) -> None:
        """Reorders the matrix's inputs, in itself, in its statistic and where they are made."""
        for channels in self.channels.get(target.name, []):
            assert self.n_m is not None
            scores = ria_scores(target.weight.float(), statistic.norms, self.params.a)
            order = best_order(channels.stacked(scores), *self.n_m)
            channels.permute(order)
            for columns in channels.columns:
                statistic.squares[columns] = statistic.squares[columns[order]]

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
