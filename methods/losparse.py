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
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError, Expected
from bench.weights import side_branch
from methods.platon import PLATON
from methods.shared.masks import pruned_count


class LoSparse(PLATON):
    """A truncated SVD beside every weight; of the rest, the least sensitive rows are zeroed."""

    name: ClassVar[str] = "losparse"
    patterns: ClassVar[tuple[str, ...]] = ("rows",)
    promises_sparsity: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Params:
        """The paper's; its learning rates are 9e-5 on MNLI and 5e-5 on SQuAD.

        GPT-2's fused q, k, v are one matrix.

        Attributes:
            kappa: κ, what L and R may take, as a fraction of the matrix; ρ is rounded up.
            warmup: of the learning rate, as a fraction of the steps.
            initial_warmup: warm-ups for which nothing is pruned.
            final_warmup: warm-ups at the end for which the sparsity is final.
            every: ΔT, updates in a window.
            beta1: of the smoothed sensitivity Ĩ.
        """

        lr: float = 5e-5
        weight_decay: float = 0.01
        kappa: float = 0.05
        warmup: float = 0.1
        initial_warmup: float = 1.0
        final_warmup: float = 3.0
        every: int = 10
        beta1: float = 0.85

    def attach(self, model, ctx) -> None:
        """Splits every target into a branch L, R and a weight S."""
        kappa = self.params.kappa
        if not 0 < kappa < 1:
            raise BenchError(f"losparse: kappa is between 0 and 1, not {kappa:g}")
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

    def expected(self, ctx) -> Expected:
        """The zeros that pay for L and R, too; up to one row more."""
        return Expected(self.surplus)

    def sensitivity(self, target, grad: Tensor) -> Tensor:
        """The mean of |S⊙∂L/∂S| over each row: (out, 1), or (1, out) as a Conv1D stores it.

        Means of rows average over updates as their elements do, so nothing larger is kept.
        """
        inputs = 0 if target.transposed else 1
        return super().sensitivity(target, grad).mean(dim=inputs, keepdim=True)

    def choose(self, ramp: float) -> list[Tensor]:
        """Keep masks over rows: the lowest go until at least `ramp` of the surplus is gone."""
        scores = self.importance.scores()
        order = torch.cat([score.flatten() for score in scores]).argsort(stable=True)
        wanted = math.ceil(ramp * self.surplus)
        gone = order[: int(torch.searchsorted(self.widths[order].cumsum(0), wanted)) + 1]
        keep = scores[0].new_ones(len(order))
        keep[gone] = 0.0
        parts = keep.split([score.numel() for score in scores])
        return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def rank(shape: tuple[int, int], kappa: float) -> int:
    """ρ = ⌈κ·o·i/(o + i)⌉ of an (out, in) matrix; 1e-6 forgives 10.000…02."""
    o, i = shape
    return math.ceil(kappa * o * i / (o + i) - 1e-6)


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """L = U√Σ: (out, r) and R = √ΣVᵀ: (r, in), the best approximation of that rank."""
    U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
    root = sigma[:r].sqrt()
    return U[:, :r] * root, root[:, None] * Vt[:r]
