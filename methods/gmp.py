"""GMP, gradual magnitude pruning (Zhu & Gupta, arXiv 1710.01878).

    s_t = s·(1 − (1 − (t − t₀)/(t₁ − t₀))³)  at t = t₀, t₀ + Δt, …, t₁;   W̃ = M(|W|)⊙W,  ∂W = G⊙M

Between two such updates the mask stands, after t₁ it is frozen. A pruned weight keeps its value
without a gradient, and comes back only when it ranks higher at the next choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from bench.api import BenchError, Method
from bench.weights.targets import merge, normal_form
from methods.shared.masks import groups_of, keep_largest, keep_n_m_partly, pruned_count
from methods.shared.schedules import cubic


class GMP(Method):
    """Gradual magnitude pruning: all weights train, the mask follows |W| along a cubic ramp."""

    name: ClassVar[str] = "gmp"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("chosen",)

    @dataclass(frozen=True)
    class Params:
        """The dense cell's optimizer and a ramp over the middle of training.

        Attributes:
            weight_decay: acts on pruned weights too, as in the reference codes: out of the mask
                they fade by lr·weight_decay an update. Sparing them would cost another pass over
                memory.
            start: t₀, where the ramp leaves sparsity 0, as a fraction of the steps.
            end: t₁, from where the mask is frozen, as a fraction of the steps.
            every: Δt, updates between two choices of the mask; Zhu and Gupta's 100 to 1000 belong
                to runs of 10,000 steps and more. t₁ is always one, whether Δt divides or not.
        """

        lr: float = 5e-5
        weight_decay: float = 0.01
        warmup: float = 0.1
        start: float = 0.1
        end: float = 0.7
        every: int = 10

    def attach(self, model, ctx) -> None:
        """Parametrizes every target; nothing is frozen."""
        p = self.params
        if not 0 <= p.start <= p.end <= 1 or p.every < 1:
            raise BenchError(
                f"gmp: 0 ≤ start ≤ end ≤ 1 and every ≥ 1, not {p.start:g}, {p.end:g}, {p.every}"
            )
        self.steps = ctx.budget.steps
        self.begin, self.last = round(p.start * self.steps), round(p.end * self.steps)
        self.chosen = None  # the update at which the present mask was chosen
        self.layers = []
        for target in ctx.targets:
            layer = MagnitudeMask(target, ctx.cell.pattern, ctx.cell.sparsity)
            target.parametrize(layer)
            self.layers.append(layer)

    def step(self, model, progress: float) -> None:
        """Has the mask chosen anew, by the next forward, where the schedule says so."""
        t = min(round(progress * self.steps), self.last)
        due = t if t == self.last else t - (t - self.begin) % self.params.every
        if due < self.begin or due == self.chosen:
            return
        self.chosen = due
        # Without a ramp everything goes at once: one-shot, then training at a fixed ratio.
        ramp = cubic(due, self.begin, self.last, 0.0, 1.0) if self.last > self.begin else 1.0
        for layer in self.layers:
            layer.due = ramp

    def finish(self, model) -> None:
        """W ← M⊙W."""
        merge(model)


class MagnitudeMask(nn.Module):
    """Maps a stored weight to M⊙W with a mask that stands until another one is due."""

    def __init__(self, target, pattern: str, sparsity: float) -> None:
        super().__init__()
        self.transposed, self.sparsity = target.transposed, sparsity
        self.n_m = pattern.n_m
        if self.n_m:
            groups_of(target.shape[1], *self.n_m, target.name)
        self.due: float | None = None
        # Floats in the stored layout: on CPUs a product with them is five times as fast as with
        # bools.
        self.register_buffer("keep", None)

    def forward(self, stored: Tensor) -> Tensor:
        """The stored weight → its masked value in the same layout."""
        if self.due is not None:
            keep = self._choose(normal_form(stored.detach(), self.transposed).float().abs())
            self.keep = normal_form(keep, self.transposed).to(stored.dtype)
            self.due = None
        return stored if self.keep is None else stored * self.keep

    def _choose(self, scores: Tensor) -> Tensor:
        """Keep mask at the point `due` of the ramp, from |W|: (out, in)."""
        if self.n_m and self.sparsity > 0:
            return keep_n_m_partly(scores, *self.n_m, fraction=self.due)
        return keep_largest(scores, pruned_count(scores.numel(), self.due * self.sparsity))
