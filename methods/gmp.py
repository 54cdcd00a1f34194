"""GMP, gradual magnitude pruning (Zhu & Gupta, arXiv 1710.01878).

    s_t = s·(1 − (1 − (t − t₀)/(t₁ − t₀))³)  at t = t₀, t₀ + Δt, …, t₁;   W̃ = M(|W|)⊙W,  ∂W = G⊙M

Between two such updates the mask stands, after t₁ it is frozen. A pruned weight keeps its value but
for AdamW's momentum and decay, gets no gradient, and comes back only when it ranks higher at the
next choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator
from torch import Tensor, nn

from bench.api import Context, Field, Method, Pattern, Setting, grid, parameters
from bench.weights.targets import Target, merge, normal_form
from methods.shared.counts import all_weights
from methods.shared.masks import groups_of, keep_largest, keep_n_m_partly, pruned_count
from methods.shared.schedules import cubic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GMP(Method):
    """Gradual magnitude pruning: all weights train, the mask follows |W| along a cubic ramp."""

    name: ClassVar[str] = "gmp"
    summary: ClassVar[str] = "Trains all weights while a magnitude mask follows a cubic ramp."
    paper: ClassVar[str] = "arXiv 1710.01878, ICLR workshop"
    year: ClassVar[int] = 2018
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(5e-5, 2.5e-5, 1e-4, 2e-4), end=(0.7, 0.5))
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("chosen",)

    @parameters
    class Params:
        """The dense cell's optimizer, and a ramp over the middle of training."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate")
        weight_decay: float = Field(
            default=0.01, ge=0, description="weight decay of matrices, pruned or not"
        )
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )
        start: float = Field(
            default=0.1,
            ge=0,
            le=1,
            description="fraction of the steps before the ramp leaves sparsity 0",
        )
        end: float = Field(
            default=0.7,
            ge=0,
            le=1,
            description="fraction of the steps after which the mask is frozen",
        )
        every: int = Field(default=10, ge=1, description="updates between two choices of the mask")

        @model_validator(mode="after")
        def _is_ordered(self) -> Self:
            if self.start > self.end:
                raise ValueError(f"start {self.start:g}: it must not be above end {self.end:g}")
            return self

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights."""
        return all_weights(model)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Parametrizes every target; nothing is frozen."""
        p = self.params
        self.steps = ctx.budget.steps
        self.begin, self.last = round(p.start * self.steps), round(p.end * self.steps)
        self.chosen: int | None = None  # the update at which the present mask was chosen
        self.layers = []
        for target in ctx.targets:
            layer = MagnitudeMask(target, ctx.cell.pattern, ctx.cell.sparsity)
            target.parametrize(layer)
            self.layers.append(layer)

    def step(self, model: PreTrainedModel, progress: float) -> None:
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

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← M⊙W."""
        merge(model)


class MagnitudeMask(nn.Module):
    """Maps a stored weight to M⊙W with a mask that stands until another one is due."""

    def __init__(self, target: Target, pattern: Pattern, sparsity: float) -> None:
        super().__init__()
        self.transposed, self.sparsity = target.transposed, sparsity
        self.n_m = pattern.n_m
        if self.n_m:
            groups_of(target.shape[1], *self.n_m, target.name)
        self.due: float | None = None
        # Floats in the stored layout: on CPUs a product with them is five times as fast as with
        # bools.
        self.keep: Tensor | None
        self.register_buffer("keep", None)

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to its masked value in the same layout."""
        if self.due is not None:
            scores = normal_form(stored.detach(), self.transposed).float().abs()
            keep = self._choose(scores, self.due)
            self.keep = normal_form(keep, self.transposed).to(stored.dtype)
            self.due = None
        return stored if self.keep is None else stored * self.keep

    def _choose(self, scores: Tensor, due: float) -> Tensor:
        """Returns the keep mask at the point `due` of the ramp, from |W|: (out, in)."""
        if self.n_m and self.sparsity > 0:
            return keep_n_m_partly(scores, *self.n_m, fraction=due)
        return keep_largest(scores, pruned_count(scores.numel(), due * self.sparsity))
