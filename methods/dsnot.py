"""DSnoT: kept and pruned weights change places until a row's expected error is small.

arXiv 2310.08915; methods/README.md, dsnot. No weight is updated:

    ε = Σ_pruned W_j·E[X_j];   restore the largest sign(ε)·W_j·E[X_j]/Var[X_j],
    prune the smallest |W_j|·‖X_j‖₂ with sign(ε)·W_j·E[X_j] < 0
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.input_statistics import Moments, wanda_scores
from methods.shared.layer_problem import Base, NMPattern, base_factors, keep_rows
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams


class MomentsAndGram(Moments):
    """The moments of the inputs, and beside them XᵀX for a base that needs it."""

    def __init__(self, width: int, device: torch.device, gram: obs.Gram | None) -> None:
        super().__init__(width, device)
        self.gram = gram

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        super().add(x)
        if self.gram is not None:
            self.gram.add(x)


class DSnoT(OneShot):
    """Swaps in the mask of another method."""

    name: ClassVar[str] = "dsnot"
    summary: ClassVar[str] = "Swaps kept and pruned weights while each row's expected error falls."
    paper: ClassVar[str] = "arXiv 2310.08915, ICLR"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(
        base=("wanda", "sparsegpt", "magnitude"), power=(1.0, 0.0)
    )

    @parameters
    class Params(ReconstructParams):
        """The paper's."""

        base: Base = Field(default="wanda", description="the method whose mask is the first")
        cycles: int = Field(default=50, ge=0, description="swaps in a row, at most")
        threshold: float = Field(
            default=0.1, ge=0, description="expected error at which a row is left alone"
        )
        power: float = Field(
            default=1.0, ge=0, description="power of the variance by which growth is divided"
        )

    params: Params

    def statistic(self, width: int, device: torch.device) -> MomentsAndGram:
        """Returns empty moments, with XᵀX where the base needs it."""
        needs_gram = self.params.base == "sparsegpt"
        gram = obs.Gram(width, device) if needs_gram else None
        return MomentsAndGram(width, device, gram)

    def pruned(self, weight: Tensor, statistic: MomentsAndGram, k: int) -> Tensor:
        """Masks one matrix."""
        norms = statistic.norms
        factors = self._factors(statistic)
        keep = keep_rows(weight.abs() * factors, k, self.n_m)
        expected = weight * statistic.mean
        tiny = torch.finfo(weight.dtype).tiny
        growth = expected / statistic.variance.clamp(min=tiny) ** self.params.power
        scores = wanda_scores(weight, norms)
        keep = swapped(
            keep, expected, growth, scores, self.params.cycles, self.params.threshold, self.n_m
        )
        return weight.masked_fill(~keep, 0.0)

    def _factors(self, statistic: MomentsAndGram) -> Tensor:
        base, norms, gram = self.params.base, statistic.norms, statistic.gram
        if gram is None:
            return base_factors(base, norms)
        return gram.once(lambda total: base_factors(base, norms, total, self.sequences))


def swapped(
    keep: Tensor,
    expected: Tensor,
    growth: Tensor,
    scores: Tensor,
    cycles: int,
    threshold: float,
    n_m: NMPattern = None,
) -> Tensor:
    """Returns the keep mask after the swaps; every row, and every group, keeps as many as before.

    A row takes a swap only if that brings |ε| down, and stops at the first that does not, once |ε|
    is within the threshold, or once ε has changed sign. What was restored stays, and so does what
    was pruned: both are ranked once.

    Args:
        keep: (out, in).
        expected: W_ij·E[X_j].
        growth: what ranks pruned weights, of the sign of `expected`.
        scores: what ranks kept weights.
        cycles: swaps in a row at most.
        threshold: of |ε|.
        n_m: the pruned weight is then one of the restored weight's group, of either sign.
    """
    cycles = min(cycles, keep.shape[1])
    error = expected.masked_fill(keep, 0.0).sum(dim=1, keepdim=True)
    sign, error = error.sign(), error.abs()
    expected = expected * sign
    growing, grown = (growth * sign).masked_fill(keep, -1.0).topk(cycles, dim=1)
    scores = scores.masked_fill(~keep, torch.inf)
    if not n_m:
        scores, lost = scores.masked_fill(expected >= 0, torch.inf).topk(
            cycles, dim=1, largest=False
        )
    keep = keep.clone()
    going = torch.ones_like(error, dtype=torch.bool)
    for cycle in range(cycles):
        restored = grown[:, cycle : cycle + 1]
        if n_m:
            start = restored // n_m[1] * n_m[1]
            members = start + torch.arange(n_m[1], device=keep.device)
            score, place = scores.gather(1, members).min(dim=1, keepdim=True)
            pruned = start + place
        else:
            score, pruned = scores[:, cycle : cycle + 1], lost[:, cycle : cycle + 1]
        after = error - expected.gather(1, restored) + expected.gather(1, pruned)
        there = (growing[:, cycle : cycle + 1] > 0) & score.isfinite()
        going &= there & (error > threshold) & (after.abs() < error)
        error = torch.where(going, after, error)
        keep.scatter_(1, restored, keep.gather(1, restored) | going)
        keep.scatter_(1, pruned, keep.gather(1, pruned) & ~going)
        if n_m:
            scores.scatter_(1, pruned, score.masked_fill(going, torch.inf))
    return keep
