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

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Method, Published
from bench.weights.targets import freeze, merge, normal_form
from methods.shared.low_rank import LowRankUpdate, updated_rows
from methods.shared.masks import keep_largest


class RoSA(Method):
    """Low-rank and sparse updates of all matrices, the places by gradient; none pruned."""

    name: ClassVar[str] = "rosa"
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()
    # Counts adapters of embeddings and LM head, too; ours has none there.
    published: ClassVar[Published | None] = Published(
        81.6 / 6738, "model", "81.6M of 6.74B, LLaMA-2-7B, r = 16, d = 0.6 %, README"
    )

    @dataclass(frozen=True)
    class Params:
        """The library's defaults; `lr` is lora's, `sparse_lr` as much lower as in the scripts.

        Attributes:
            lr: of A, B and the head.
            sparse_lr: of S.
            warmup: of the learning rates, as a fraction of the steps after the restart.
            rank: r; 0 leaves S alone, without a warm-up.
            alpha: α; BA is scaled by α/r.
            density: d, |Ω| as a fraction of the matrix; 0 leaves LoRA of all matrices.
            lora_steps: updates of LoRA alone, before gradients are collected.
            lora_share: of the budget, what they may be at most.
            gradients: batches whose gradients decide Ω.
            collect: `mean_squared` or `mean`, whose magnitude counts then.
        """

        lr: float = 5e-4
        sparse_lr: float = 1.4e-4
        weight_decay: float = 0.0
        warmup: float = 0.06
        rank: int = 8
        alpha: float = 8.0
        density: float = 0.003
        lora_steps: int = 64
        lora_share: float = 0.2
        gradients: int = 1
        collect: str = "mean_squared"

    def attach(self, model, ctx) -> None:
        """Freezes everything but the head; every target gets its A, B and the values of S."""
        p = self.params
        if p.collect not in ("mean_squared", "mean"):
            raise BenchError(f"rosa: collect is 'mean_squared' or 'mean', not {p.collect!r}")
        if p.rank < 0 or not 0 <= p.density <= 1 or p.rank == p.density == 0:
            raise BenchError(
                f"rosa: rank ≥ 0 and 0 ≤ density ≤ 1, not both 0; not {p.rank} and {p.density:g}"
            )
        self.steps = ctx.budget.steps
        self.alone = min(p.lora_steps, int(p.lora_share * self.steps)) if p.rank else 0
        self.restart = self.alone + p.gradients if p.density else 0
        if p.density and not 0 < p.gradients < self.steps - self.alone:
            raise BenchError(f"rosa: {p.gradients} gradients do not fit into {self.steps} steps")
        freeze(model)
        self.layers = []
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
        self.adam = None

    @torch.no_grad()
    def step(self, model, progress: float) -> None:
        """Collects gradients after the warm-up; then chooses Ω and starts anew, once."""
        for layer in self.layers:
            layer.end_batch()
        done = round(progress * self.steps)
        if done < self.restart:
            for layer in self.layers:
                layer.collecting = done >= self.alone
        if done != self.restart or not self.start:
            return
        for layer in self.layers:
            layer.choose()
        for parameter, value in self.start:
            parameter.copy_(value)
        if self.adam is not None:
            self.adam.state.clear()
        self.start = []

    def param_groups(self, model) -> list[dict]:
        """The values of S in a group of their own, from the start."""
        values = [layer.values for layer in self.layers]
        ids = {id(q) for q in values}
        groups = super().param_groups(model)
        for group in groups:
            group["params"] = [q for q in group["params"] if id(q) not in ids]
        lr = self.scaled(self.params.sparse_lr, model)
        groups.append({"params": values, "lr": lr, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def optimizer(self, groups) -> torch.optim.Optimizer:
        """AdamW; remembered, to be started afresh."""
        self.adam = super().optimizer(groups)
        return self.adam

    def lr_factor(self, progress: float) -> float:
        """One schedule over the steps after the restart; those before it go the same way in."""
        done = round(progress * self.steps)
        done -= self.restart if done >= self.restart else 0
        return super().lr_factor(min(done / (self.steps - self.restart), 1.0))

    def finish(self, model) -> None:
        """W ← W + (α/r)·BA + S: dense."""
        merge(model)


class SparseUpdate(nn.Module):
    """Adds S to a stored weight: `values` (|Ω|,) at `omega` (2, |Ω|), places in that layout.

    Until Ω is chosen nothing is added, and the weight's gradient can be collected on its way back:
    micro-batches of one update are summed before the sum is squared.
    """

    def __init__(self, target, rows: list[slice], params) -> None:
        super().__init__()
        self.transposed, self.rows = target.transposed, rows
        self.squared = params.collect == "mean_squared"
        # The low-rank update's output is nobody else's, the frozen weight is.
        self.in_place = params.rank > 0
        self.shape, width = target.stored.shape, target.shape[1]
        self.counts = [int(params.density * (r.stop - r.start) * width + 1e-6) for r in rows]
        self.values = nn.Parameter(torch.zeros(sum(self.counts)))
        # Buffers, as a checkpoint needs them.
        self.register_buffer("omega", None)
        self.register_buffer("batch", None)
        self.register_buffer("total", None)
        self.collecting = False

    def forward(self, stored: Tensor) -> Tensor:
        """The stored weight → the weight with S, in the same layout."""
        return _Add.apply(stored, self.values, self)

    def collect(self, grad: Tensor) -> None:
        """Adds a micro-batch's gradient of the stored weight to the batch's."""
        self.batch = grad.clone() if self.batch is None else self.batch.add_(grad)

    def end_batch(self) -> None:
        """Adds the batch's gradient, squared or not, to the sum over batches."""
        if self.batch is not None:
            seen = self.batch.square_() if self.squared else self.batch
            self.total = seen if self.total is None else self.total.add_(seen)
            self.batch = None

    def choose(self) -> None:
        """Ω: in each logical matrix the places where the sum over batches is largest in size."""
        total = self.values.new_zeros(self.shape) if self.total is None else self.total
        scores = normal_form(total, self.transposed).abs()
        found = []
        for part, count in zip(self.rows, self.counts, strict=True):
            keep = keep_largest(scores[part], scores[part].numel() - count)
            places = keep.nonzero_static(size=count).t()
            found.append(places + torch.tensor([[part.start], [0]], device=keep.device))
        omega = torch.cat(found, dim=1)
        self.omega = omega.flip(0) if self.transposed else omega
        self.collecting, self.total = False, None


class _Add(torch.autograd.Function):
    """(W, θ) → W with θ added at Ω; ∂W = G, ∂θ = G at Ω."""

    @staticmethod
    def forward(ctx, stored, values, layer):
        ctx.layer, ctx.omega = layer, layer.omega
        if layer.omega is None:
            return stored.view_as(stored)
        if layer.in_place:
            ctx.mark_dirty(stored)
        out = stored if layer.in_place else stored.clone()
        out[layer.omega[0], layer.omega[1]] += values
        return out

    @staticmethod
    def backward(ctx, grad):
        if ctx.omega is not None:
            return grad, grad[ctx.omega[0], ctx.omega[1]], None
        if ctx.layer.collecting:
            ctx.layer.collect(grad)
        return grad, None, None
