"""Pruning in place by smoothed sensitivity, on a cubic ramp (methods/README.md, platon)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bench.api import Context, Method
from bench.weights.targets import Target
from methods.shared.schedules import between_holds, cubic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Importance:
    """Smoothed sensitivity Ĩ of some tensors and its uncertainty Ũ (arXiv 2206.12562)."""

    def __init__(self, like: list[Tensor], beta1: float, beta2: float) -> None:
        self.betas = (beta1, beta2)
        self.count = 0
        self.window = [torch.zeros_like(x) for x in like]
        self.smoothed = [torch.zeros_like(x) for x in like]
        self.uncertain = [torch.zeros_like(x) for x in like] if beta2 < 1 else []

    def state_dict(self) -> dict[str, Any]:
        """Returns what training has changed."""
        return {k: v for k, v in vars(self).items() if k != "betas"}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Puts it back."""
        vars(self).update(saved)

    def end_window(self) -> None:
        """Averages the window into Ĩ, its distance from the new Ĩ into Ũ, and empties it."""
        beta1, beta2 = self.betas
        for k, (window, smoothed) in enumerate(zip(self.window, self.smoothed, strict=True)):
            smoothed.lerp_(window.div_(self.count), 1.0 - beta1)
            if self.uncertain:
                self.uncertain[k].lerp_(window.sub_(smoothed).abs_(), 1.0 - beta2)
            window.zero_()
        self.count = 0

    def scores(self) -> list[Tensor]:
        """Returns Ĩ⊙Ũ, or Ĩ where the uncertainty is left out."""
        if not self.uncertain:
            return self.smoothed
        return [i * u for i, u in zip(self.smoothed, self.uncertain, strict=True)]


class ImportancePruning(Method):
    """A method that zeroes the least important weights in place while all weights train.

    A subclass says in `choose` what goes; it may override `sensitivity`. No mask is in the forward
    pass, so a zero weight has a gradient and may grow back. Its `Params` have `warmup`,
    `initial_warmup`, `final_warmup`, `every` and `beta1`.
    """

    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("importance",)

    def prepare(self, ctx: Context, beta2: float) -> None:
        """Sets the schedule in updates, and the importance of what `sensitivity` measures."""
        p = self.params
        first, last = between_holds(p)
        self.steps, self.done = ctx.budget.steps, 0
        self.first, self.last = round(first * self.steps), max(round(last * self.steps), 1)
        self.targets = ctx.targets
        like = [self.sensitivity(t, torch.zeros_like(t.stored)) for t in self.targets]
        self.importance = Importance(like, p.beta1, beta2)
        self.keep: list[Tensor] | None = None

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes the default AdamW, watched before each update and followed by pruning."""
        optimizer = super().optimizer(groups)
        optimizer.register_step_pre_hook(lambda *_: self.observe())
        optimizer.register_step_post_hook(lambda *_: self.prune())
        return optimizer

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Notes where in the schedule we are; all else hangs on the optimizer's own step."""
        self.done = round(progress * self.steps)

    @torch.no_grad()
    def observe(self) -> None:
        """Adds this update's sensitivities to the window; micro-batches are summed by now."""
        self.importance.count += 1
        for target, window in zip(self.targets, self.importance.window, strict=True):
            grad = target.module.get_parameter("weight").grad
            if grad is not None:
                window.add_(self.sensitivity(target, grad))

    def sensitivity(self, target: Target, grad: Tensor) -> Tensor:
        """Returns |θ⊙∂L/∂θ| as the weight is stored: one pool over all has no rows to respect."""
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

    @abstractmethod
    def choose(self, ramp: float) -> list[Tensor]:
        """Returns keep masks, as floats, when a share `ramp` of all that is to go goes."""

    def zero(self, keep: list[Tensor]) -> None:
        """Sets θ ← M⊙θ."""
        for target, mask in zip(self.targets, keep, strict=True):
            target.stored.mul_(mask)

    def finish(self, model: PreTrainedModel) -> None:
        """Turns −0.0 into 0.0; the last update was followed by pruning."""
        for target in self.targets:
            target.stored.add_(0.0)
