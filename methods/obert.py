"""oBERT, the Optimal BERT Surgeon: gradual second-order pruning (arXiv 2203.07259).

    F = λI + (1/m)·Σ g gᵀ in blocks of B consecutive weights
    ρ_q = w_q²/(2·[F⁻¹]_qq),   w ← w − Σ w_q/[F⁻¹]_qq·F⁻¹e_q over the q that go

A few choices along a cubic ramp, each with F of the last m updates' gradients; the lowest ρ go, in
one pool over all matrices, and never come back. The learning rate rewinds at each choice, and a
dense teacher is imitated throughout.

The gradients are those of the training batches: whole, before they are clipped, and zero where a
weight is pruned. They cost memory, not passes.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import Context, Field, Method, Published, Setting, grid, parameters
from bench.weights.targets import normal_form
from methods.shared.block_fisher import BlockFisher
from methods.shared.counts import all_weights
from methods.shared.distill import mixed
from methods.shared.masks import groups_of, keep_largest_global, keep_n_m_partly
from methods.shared.schedules import cubic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP = 1.0


class OBERT(Method):
    """All weights train; a few second-order choices zero weights and move the others."""

    name: ClassVar[str] = "obert"
    summary: ClassVar[str] = (
        "Prunes gradually by a blockwise Fisher; kept weights make up, a dense teacher helps."
    )
    paper: ClassVar[str] = "arXiv 2203.07259, EMNLP"
    year: ClassVar[int] = 2022
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(5e-5, 2.5e-5, 1e-4, 2e-4), damp=(1e-7, 1e-5))
    uniform: ClassVar[bool] = False
    # It clips by itself, after it has seen the gradients.
    max_grad_norm: ClassVar[float] = 0.0
    state: ClassVar[tuple[str, ...]] = ("keep", "buffer", "collected", "chosen")
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @parameters
    class Params:
        """Those of the released recipes of 30 epochs, as fractions of the steps."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate after each rewind")
        lr_min: float = Field(
            default=0.1, ge=0, le=1, description="where it ends before each rewind, a share of lr"
        )
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of matrices")
        start: float = Field(
            default=0.067, ge=0, le=1, description="fraction of the steps before the first choice"
        )
        end: float = Field(
            default=0.867, ge=0, le=1, description="fraction of the steps before the last choice"
        )
        choices: int = Field(default=7, ge=1, description="choices, evenly from start to end")
        initial: float = Field(
            default=0.78, ge=0, le=1, description="share of the sparsity that goes at the first"
        )
        gradients: int = Field(
            default=32,
            ge=1,
            description="m, gradients before a choice: a copy of the prunable weights each",
        )
        held: Literal["float32", "bfloat16"] = Field(
            default="float32", description="type that these copies are held in"
        )
        block: int = Field(default=50, ge=1, description="B, weights in a block of the Fisher")
        damp: float = Field(default=1e-7, gt=0, description="λ, added to the Fisher's diagonal")
        kd: float = Field(
            default=1.0,
            ge=0,
            le=1,
            description="weight of distillation, the task's loss has the rest; 0 needs no teacher",
        )
        temperature: float = Field(default=2.0, gt=0, description="temperature of distillation")

        @model_validator(mode="after")
        def _is_ordered(self) -> Self:
            if self.start > self.end:
                raise ValueError(f"start {self.start:g}: it must not be above end {self.end:g}")
            return self

    params: Params

    @property
    def needs_dense(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the dense cell is the teacher."""
        return self.params.kd > 0

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights."""
        return all_weights(model)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Fetches the teacher and plans the choices; the model stays as it is."""
        p = self.params
        self.cell, self.targets, self.steps = ctx.cell, ctx.targets, ctx.budget.steps
        if n_m := self.cell.pattern.n_m:
            for target in self.targets:
                groups_of(target.shape[1], *n_m, target.name)
        gap = (p.end - p.start) / max(p.choices - 1, 1)
        # Not before the first update: there would be no gradient to choose by.
        times = [max(round((p.start + k * gap) * self.steps), 1) for k in range(p.choices)]
        self.times = [min(t, self.steps) for t in times]
        self.bounds = sorted({0, *self.times, self.steps})
        self.done = self.chosen = 0  # updates; choices
        self.keep: list[Tensor] = []
        self.buffer: list[Tensor] = []
        self.collected = 0
        self.teacher = ctx.teacher() if p.kd else None

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Chooses anew where a choice is due; several that fall on one update are one."""
        self.done = round(progress * self.steps)
        due = bisect_right(self.times, self.done)
        if due > self.chosen:
            self.chosen = due
            last = self.params.choices - 1
            ramp = cubic(due - 1, 0, last, self.params.initial, 1.0) if last else 1.0
            self._choose(ramp)
            self.buffer, self.collected = [], 0

    def loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], outputs: Any) -> Tensor:
        """Returns α·KD + (1 − α)·task."""
        return mixed(self.teacher, inputs, outputs, self.params.kd, self.params.temperature)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes the default AdamW, watched before each update and masked after it."""
        optimizer = super().optimizer(groups)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: self._observe(held))
        optimizer.register_step_post_hook(lambda *_: self._mask())
        return optimizer

    def lr_factor(self, progress: float) -> float:
        """Falls linearly to `lr_min` from each choice to the next, and from the start likewise."""
        done = progress * self.steps
        i = min(bisect_right(self.bounds, done), len(self.bounds) - 1)
        start, end = self.bounds[i - 1], self.bounds[i]
        return 1.0 - (1.0 - self.params.lr_min) * (done - start) / (end - start)

    @torch.no_grad()
    def _observe(self, held: list[Tensor]) -> None:
        """Takes the gradient of pruned weights away, notes the others before a choice, clips."""
        grads = [target.module.get_parameter("weight").grad for target in self.targets]
        for k, grad in enumerate(grads):
            if self.keep and grad is not None:
                grad.mul_(self.keep[k])
        p = self.params
        if self.chosen < len(self.times) and self.done >= self.times[self.chosen] - p.gradients:
            if not self.buffer:
                kind = getattr(torch, p.held)
                like = [target.stored for target in self.targets]
                self.buffer = [w.new_zeros((p.gradients, *w.shape), dtype=kind) for w in like]
            for rows, grad in zip(self.buffer, grads, strict=True):
                if grad is not None:
                    rows[self.collected].copy_(grad)
            self.collected += 1
        torch.nn.utils.clip_grad_norm_(held, CLIP)

    @torch.no_grad()
    def _mask(self) -> None:
        """Sets θ ← M⊙θ; what is pruned never comes back."""
        if self.keep:
            for target, keep in zip(self.targets, self.keep, strict=True):
                target.stored.mul_(keep)

    @torch.no_grad()
    def _choose(self, ramp: float) -> None:
        """Prunes a share `ramp` of all that is to go, and moves the weights that stay."""
        kept = [
            normal_form(self.keep[k], target.transposed)
            if self.keep
            else torch.ones_like(target.weight)
            for k, target in enumerate(self.targets)
        ]
        precisions = [self._fisher(k).precision().view(kept[k].shape) for k in range(len(kept))]
        scores = [
            # Nothing comes back: what is pruned ranks below every ρ.
            torch.where(keep != 0, 0.5 * target.weight.float().square() * precision, -1.0)
            for target, keep, precision in zip(self.targets, kept, precisions, strict=True)
        ]
        if n_m := self.cell.pattern.n_m:
            share = ramp if self.cell.sparsity else 0.0
            masks = [keep_n_m_partly(score, *n_m, fraction=share) for score in scores]
        else:
            masks = keep_largest_global(scores, ramp * self.cell.sparsity)
        for k, (target, mask) in enumerate(zip(self.targets, masks, strict=True)):
            weight = target.weight.float()
            going = torch.where(mask, 0.0, weight * precisions[k])
            weight = weight - self._fisher(k).solve(going.flatten()).view_as(weight)
            target.write(torch.where(mask, weight, 0.0))
        self.keep = [
            normal_form(mask, target.transposed).to(target.stored.dtype)
            for mask, target in zip(masks, self.targets, strict=True)
        ]

    def _fisher(self, k: int) -> BlockFisher:
        """Returns the Fisher of a matrix whose blocks run along its inputs, row by row."""
        target, p = self.targets[k], self.params
        if not self.buffer:
            return BlockFisher(target.stored.new_zeros(0, target.stored.numel()), p.damp, p.block)
        grads = self.buffer[k][: self.collected]
        grads = grads.mT.contiguous() if target.transposed else grads
        return BlockFisher(grads.flatten(1), p.damp, p.block)

    def finish(self, model: PreTrainedModel) -> None:
        """Turns −0.0 into 0.0; the last update was followed by the mask."""
        for target in self.targets:
            target.stored.add_(0.0)
