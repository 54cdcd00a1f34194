"""LoSparse, low-rank plus structured sparse (ICML'23, arXiv 2306.11222).

    W = LR + S,   y = x Sᵀ + (x Rᵀ) Lᵀ + b      L: (out, ρ), R: (ρ, in), ρ = ⌈κ·o·i/(o + i)⌉

L = U√Σ and R = √ΣVᵀ come from the ρ largest singular values, S is what they leave. All of it
trains. S loses whole rows (output neurons) as PLATON's weights go: importance of a row = the mean
over it of Ĩ, without uncertainty; one ranking over the rows of all matrices; rows may grow back.

What "sparsity" means. As in the paper's tables, 1 − sparsity is the total ratio κ + kept: L and R
are paid for, and a cell stores what other methods' cells of that sparsity store, or up to one row
less. The counted sparsity is that of S, which stays the weight with L and R as a branch beside it
(bench/weights/side_branch.py): higher than the cell's by what L and R take, about κ. So none is
promised. The exported model multiplies by all of S; leaving out zero rows is up to who runs it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import BenchError, Context, Expected, Field, Published, Setting, grid, parameters
from bench.weights import side_branch
from bench.weights.targets import Target, prunable
from methods.shared.counts import all_weights
from methods.shared.importance import ImportancePruning
from methods.shared.masks import pruned_count
from methods.shared.schedules import between_holds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoSparse(ImportancePruning):
    """A truncated SVD beside every weight; of the rest, the least sensitive rows are zeroed."""

    name: ClassVar[str] = "losparse"
    summary: ClassVar[str] = (
        "Splits each weight into low-rank + sparse and prunes rows of the sparse part."
    )
    paper: ClassVar[str] = "arXiv 2306.11222, ICML"
    year: ClassVar[int] = 2023
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("rows",)
    promises_sparsity: ClassVar[bool] = False
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(5e-5, 2.5e-5, 1e-4, 2e-4), kappa=(0.05, 0.1))
    uniform: ClassVar[bool] = False
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @parameters
    class Params:
        """The paper's; it trains with 9e-5 on MNLI and 5e-5 on SQuAD."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate")
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of matrices")
        kappa: float = Field(
            default=0.05,
            gt=0,
            lt=1,
            description="size of the low-rank part, as a fraction of the matrix",
        )
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )
        initial_warmup: float = Field(
            default=1.0, ge=0, description="warm-ups before pruning starts"
        )
        final_warmup: float = Field(
            default=3.0, ge=0, description="warm-ups at the end with the final sparsity"
        )
        every: int = Field(default=10, ge=1, description="updates in a window")
        beta1: float = Field(
            default=0.85, ge=0, lt=1, description="decay of the smoothed sensitivity"
        )

        @model_validator(mode="after")
        def _leaves_a_ramp(self) -> Self:
            between_holds(self)
            return self

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights, and ρ·(o + i) a matrix, ρ = ⌈κ·o·i/(o + i)⌉."""
        shapes = [target.shape for target in prunable(model)]
        kappa = self.params.kappa
        return all_weights(model) + sum(rank((o, i), kappa) * (o + i) for o, i in shapes)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Splits every target into a branch L, R and a weight S."""
        kappa = self.params.kappa
        shapes = [target.shape for target in ctx.targets]
        ranks = [rank(shape, kappa) for shape in shapes]
        n = sum(o * i for o, i in shapes)
        branches = sum(r * (o + i) for r, (o, i) in zip(ranks, shapes, strict=True))
        # Another method would keep n − pruned_count weights; L and R are some of them.
        self.surplus = pruned_count(n, ctx.cell.sparsity) + branches
        if self.surplus > n:
            raise BenchError(
                f"losparse: at sparsity {ctx.cell.sparsity:g} there is less left than L and R "
                f"take, {branches / n:.3f} of the weights; lower kappa or the sparsity"
            )
        for target, r in zip(ctx.targets, ranks, strict=True):
            L, R = truncated_svd(target.weight.float(), r)
            target.write(target.weight - L @ R)
            side_branch.add(target.module, R, L)
        # Elements in each row, in the order of the scores.
        widths = [torch.full((o,), i, device=ctx.device) for o, i in shapes]
        self.widths = torch.cat(widths)
        self.prepare(ctx, beta2=1.0)

    def expected(self, ctx: Context) -> Expected:
        """Returns the zeros that pay for L and R, too; up to one row more."""
        return Expected(self.surplus)

    def sensitivity(self, target: Target, grad: Tensor) -> Tensor:
        """Returns the mean of |S⊙∂L/∂S| over each row: (out, 1), or (1, out) as a Conv1D stores it.

        Means of rows average over updates as their elements do, so nothing larger is kept.
        """
        inputs = 0 if target.transposed else 1
        return super().sensitivity(target, grad).mean(dim=inputs, keepdim=True)

    def choose(self, ramp: float) -> list[Tensor]:
        """Returns keep masks over rows: the lowest go until `ramp` of the surplus is gone."""
        scores = self.importance.scores()
        order = torch.cat([score.flatten() for score in scores]).argsort(stable=True)
        wanted = math.ceil(ramp * self.surplus)
        widths = self.widths[order]
        before = widths.cumsum(0) - widths  # elements of the rows that go first
        keep = scores[0].new_empty(len(order))
        keep[order] = (before >= wanted).to(keep.dtype)
        parts = keep.split([score.numel() for score in scores])
        return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def rank(shape: tuple[int, int], kappa: float) -> int:
    """Returns ρ = ⌈κ·o·i/(o + i)⌉ of an (out, in) matrix; 1e-6 forgives 10.000…02."""
    o, i = shape
    return math.ceil(kappa * o * i / (o + i) - 1e-6)


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Returns L = U√Σ: (out, r) and R = √ΣVᵀ: (r, in), the best approximation of that rank."""
    U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
    root = sigma[:r].sqrt()
    return U[:, :r] * root, root[:, None] * Vt[:r]
