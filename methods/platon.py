"""PLATON, pruning by an upper confidence bound of importance (arXiv 2206.12562).

    I = |θ⊙∂L/∂θ|,  Ī_k its mean over the k-th window of ΔT updates
    Ĩ = β₁Ĩ + (1 − β₁)Ī_k,   Ũ = β₂Ũ + (1 − β₂)|Ī_k − Ĩ|,   score Ĩ⊙Ũ, one pool over all matrices

What ranks lowest is set to zero in place: every ΔT updates on a cubic ramp, after every update in
the final hold. No mask is in the forward, so a zero weight has a gradient and may grow back.

θ and ∂L/∂θ are those of the same update, as in the paper; the released code takes θ after it,
where a weight that has just been pruned is no longer zero, and averages a window of zeros in at the
start. The gradient is the one that the optimizer gets: of the whole batch, clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError, Method, Published
from methods.shared.importance import Importance
from methods.shared.masks import keep_largest_global
from methods.shared.schedules import between_holds, cubic


class PLATON(Method):
    """All weights train; the lowest of sensitivity × its uncertainty are zeroed in one pool."""

    name: ClassVar[str] = "platon"
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    uniform: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("importance",)
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @dataclass(frozen=True)
    class Params:
        """The paper's but for the optimizer (its Adamax on GLUE), which is the dense cell's.

        Attributes:
            warmup: of the learning rate, as a fraction of the steps.
            initial_warmup: warm-ups for which nothing is pruned.
            final_warmup: warm-ups at the end for which the sparsity is final.
            every: ΔT, updates in a window.
            beta1: of the smoothed sensitivity Ĩ.
            beta2: of its uncertainty Ũ; 1 leaves Ũ out of the score.
        """

        lr: float = 5e-5
        weight_decay: float = 0.01
        warmup: float = 0.1
        initial_warmup: float = 1.0
        final_warmup: float = 3.0
        every: int = 10
        beta1: float = 0.85
        beta2: float = 0.95

    def attach(self, model, ctx) -> None:
        """Nothing in the model changes; biases and the pooler are not in the pool."""
        self.sparsity = ctx.cell.sparsity
        self.prepare(ctx, self.params.beta2)

    def prepare(self, ctx, beta2: float) -> None:
        """The schedule in updates, and the importance of what `sensitivity` measures."""
        p = self.params
        if p.every < 1:
            raise BenchError(f"{self.name}: every is at least 1, not {p.every}")
        first, last = between_holds(self.name, p)
        self.steps, self.done = ctx.budget.steps, 0
        self.first, self.last = round(first * self.steps), max(round(last * self.steps), 1)
        self.targets = ctx.targets
        like = [self.sensitivity(t, torch.zeros_like(t.stored)) for t in self.targets]
        self.importance = Importance(like, p.beta1, beta2)
        self.keep: list[Tensor] | None = None

    def optimizer(self, groups) -> torch.optim.Optimizer:
        """AdamW, watched before each update and followed by pruning."""
        optimizer = super().optimizer(groups)
        optimizer.register_step_pre_hook(lambda *_: self.observe())
        optimizer.register_step_post_hook(lambda *_: self.prune())
        return optimizer

    def step(self, model, progress: float) -> None:
        """Tells where in the schedule we are; all else hangs on the optimizer's own step."""
        self.done = round(progress * self.steps)

    @torch.no_grad()
    def observe(self) -> None:
        """Adds this update's sensitivities to the window; micro-batches are summed by now."""
        self.importance.count += 1
        for target, window in zip(self.targets, self.importance.window, strict=True):
            if target.module.weight.grad is not None:
                window.add_(self.sensitivity(target, target.module.weight.grad))

    def sensitivity(self, target, grad: Tensor) -> Tensor:
        """|θ⊙∂L/∂θ| of a weight as it is stored: one pool over all has no rows to respect."""
        return (target.stored * grad).abs_()

    @torch.no_grad()
    def prune(self) -> None:
        """Zeroes what ranks lowest, where the schedule says so.

        The ranking changes only with a window's end, so in the hold the mask stands in between.
        """
        self.done += 1
        t = self.done
        ends = t % self.params.every == 0 or t == self.last
        if ends:
            self.importance.end_window()
        if t >= self.last:
            if ends or self.keep is None:
                self.keep = self.choose(1.0)
            self.zero(self.keep)
        elif ends and t > self.first:
            self.zero(self.choose(cubic(t, self.first, self.last, 0.0, 1.0)))

    def choose(self, ramp: float) -> list[Tensor]:
        """Keep masks, as floats, when a share `ramp` of all that is to go goes."""
        scores = self.importance.scores()
        return keep_largest_global(scores, ramp * self.sparsity, scores[0].dtype)

    def zero(self, keep: list[Tensor]) -> None:
        """θ ← M⊙θ."""
        for target, mask in zip(self.targets, keep, strict=True):
            target.stored.mul_(mask)

    def finish(self, model) -> None:
        """The last update was followed by pruning; what is left is to turn −0.0 into 0.0."""
        for target in self.targets:
            target.stored.add_(0.0)
