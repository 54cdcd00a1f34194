"""RoSA, low-rank plus sparse updates of frozen weights (arXiv 2401.04679).

    W' = W + (α/r)·BA + S,   S is ⌊d·n⌋ numbers at places Ω of each matrix

W is frozen. Ω is where the loss wants to move W most: after a warm-up of LoRA alone, the gradients
of the whole W of a few batches are squared (a diagonal Fisher matrix) and averaged, and the largest
entries of every matrix are Ω. Then training restarts with Ω: A, B, the head, the optimizer and the
schedule are as at the first step. One budget holds it all, so the warm-up is part of it, and where
64 updates would be more than a fifth of it, it is a fifth.

Like `lora`, and other than peft, GPT-2's fused q, k, v are three matrices, and there is no dropout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from bench.api import (
    BenchError,
    Budget,
    Cell,
    Context,
    Field,
    Method,
    Published,
    Setting,
    grid,
    parameters,
)
from bench.weights.targets import freeze, merge, prunable
from methods.shared.low_rank import LowRankUpdate, updated_rows
from methods.shared.sparse_update import SparseUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoSA(Method):
    """Low-rank and sparse updates of all matrices, the places by gradient; none pruned."""

    name: ClassVar[str] = "rosa"
    summary: ClassVar[str] = "Trains low-rank and sparse updates of frozen weights; prunes nothing."
    paper: ClassVar[str] = "arXiv 2401.04679, ICML"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(
        lr=(5e-4, 2.5e-4, 1e-3, 2e-3), sparse_lr=(1.4e-4, 5.6e-4)
    )
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()
    # Counts adapters of embeddings and LM head, too; ours has none there.
    published: ClassVar[Published | None] = Published(
        81.6 / 6738, "model", "81.6M of 6.74B, LLaMA-2-7B, r = 16, d = 0.6 %, README"
    )

    @parameters
    class Params:
        """The library's; `lr` is lora's, and `sparse_lr` is 2/7 of it, as in the scripts."""

        lr: float = Field(default=5e-4, gt=0, description="learning rate of A, B and the head")
        sparse_lr: float = Field(
            default=1.4e-4, gt=0, description="learning rate of the sparse update"
        )
        weight_decay: float = Field(default=0.0, ge=0, description="weight decay of all matrices")
        warmup: float = Field(
            default=0.06,
            ge=0,
            lt=1,
            description="fraction of the steps after the restart in which lr rises",
        )
        rank: int = Field(
            default=8,
            ge=0,
            description="rank of the update; 0 leaves the sparse update alone, without a warm-up",
        )
        alpha: float = Field(
            default=8.0, gt=0, description="the low-rank update is scaled by alpha / rank"
        )
        density: float = Field(
            default=0.003,
            ge=0,
            le=1,
            description="size of the sparse update, as a fraction of the matrix; 0: LoRA alone",
        )
        lora_steps: int = Field(
            default=64, ge=0, description="updates of LoRA alone before gradients are collected"
        )
        lora_share: float = Field(
            default=0.2,
            ge=0,
            le=1,
            description="fraction of the steps that these updates take at most",
        )
        gradients: int = Field(
            default=1,
            ge=1,
            description="batches whose gradients choose the places of the sparse update",
        )
        collect: Literal["mean_squared", "mean"] = Field(
            default="mean_squared",
            description="what is averaged: squared gradients, or gradients whose size counts then",
        )

        @model_validator(mode="after")
        def _updates_something(self) -> Self:
            if self.rank == self.density == 0:
                raise ValueError("rank 0 and density 0: at least one of them must be above 0")
            return self

    params: Params

    def check(self, cell: Cell, budget: Budget) -> None:
        """Refuses more gradients than there are steps for."""
        if not self.params.density:
            return
        left = budget.steps - self._alone(budget.steps)
        if self.params.gradients >= left:
            raise BenchError(
                f"method rosa: gradients {self.params.gradients}: it must be below {left}, the "
                f"steps left of {budget.steps}; lower it or raise budget.steps"
            )

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns r·(o + i) + ⌊d·o·i⌋ summed over the logical matrices."""
        r, d = self.params.rank, self.params.density
        shapes = [(t.shape[0] // t.parts, t.shape[1], t.parts) for t in prunable(model)]
        return sum(parts * (r * (o + i) + math.floor(d * o * i)) for o, i, parts in shapes)

    def _alone(self, steps: int) -> int:
        """Returns how many of `steps` updates train A and B alone, before gradients are seen."""
        p = self.params
        return min(p.lora_steps, int(p.lora_share * steps)) if p.rank else 0

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes everything but the head; every target gets its A, B and the values of S."""
        p = self.params
        self.steps = ctx.budget.steps
        self.alone = self._alone(self.steps)
        self.restart = self.alone + p.gradients if p.density else 0
        freeze(model)
        self.layers: list[SparseUpdate] = []
        for target in ctx.targets:
            rows = updated_rows(target, "all")
            if p.density:
                self.layers.append(SparseUpdate(target, rows, p).to(ctx.device))
            if p.rank:
                target.parametrize(LowRankUpdate(target, rows, p, ctx.rng).to(ctx.device))
            if p.density:
                target.parametrize(self.layers[-1])
        # What a restart goes back to.
        trained = [q for q in model.parameters() if q.requires_grad]
        self.start = [(q, q.detach().clone()) for q in trained] if self.restart else []
        self.adam: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Collects gradients after the warm-up; then chooses Ω and starts anew, once."""
        for layer in self.layers:
            layer.end_batch()
        if any(layer.omega is not None for layer in self.layers):
            self.start = []  # a checkpoint from after the restart has come with its Ω
        if not self.start:
            return
        done = round(progress * self.steps)
        if done < self.restart:
            for layer in self.layers:
                layer.collecting = done >= self.alone
            return
        for layer in self.layers:
            layer.choose()
        for parameter, value in self.start:
            parameter.copy_(value)
        if self.adam is not None:
            self.adam.state.clear()
        self.start = []

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns the default groups, and from the start one for the values of S."""
        p, values = self.params, [layer.values for layer in self.layers]
        ids = {id(q) for q in values}
        others = [q for q in model.parameters() if q.requires_grad and id(q) not in ids]
        return self.groups(model, (others, p.lr, p.weight_decay), (values, p.sparse_lr, 0.0))

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes the default AdamW and remembers it, to start it afresh."""
        self.adam = super().optimizer(groups)
        return self.adam

    def lr_factor(self, progress: float) -> float:
        """Follows one schedule after the restart; the steps before it go the same way in."""
        done = round(progress * self.steps)
        done -= self.restart if done >= self.restart else 0
        return super().lr_factor(min(done / (self.steps - self.restart), 1.0))

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← W + (α/r)·BA + S: dense."""
        merge(model)
