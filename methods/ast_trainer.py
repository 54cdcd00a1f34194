"""AST, adaptive sparse trainer (AAAI'25, arXiv 2407.20584): 2:4 training that starts from dense.

    m: in each row, of every M consecutive inputs keep the N largest |W|; re-chosen every Δ updates
    y = x (m⊙W)ᵀ + b  [+ (x Xᵀ) Qᵀ]          straight-through: ∂L/∂W := ∂L/∂(m⊙W), dense
    pruned weights decay by λ(t), which ramps up (methods/shared/annealed_adamw.py)
    L = α·KD₂(dense teacher) + (1 − α)·task

The bracket is SLoRB, a low-rank branch that starts as a fit of what was pruned. It cannot be
merged without filling the zeros, so it stays a branch of the exported module
(bench/weights/side_branch.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Method, Published
from bench.weights import side_branch
from bench.weights.targets import head_parameters, merge, normal_form
from methods.shared.annealed_adamw import AnnealedAdamW
from methods.shared.distill import distilled
from methods.shared.masks import keep_masks


class AST(Method):
    """N:M training with an adapting magnitude mask, annealed decay and a dense teacher."""

    name: ClassVar[str] = "ast"
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("N:M",)
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @dataclass(frozen=True)
    class Params:
        """Defaults are the paper's for GPT-2, as fractions of its 40,000 steps.

        Attributes:
            lr: None is the paper's 2e-4 where a language model is retrained as it is, and the dense
                cell's 5e-5 where a new head is fine-tuned: four times as much collapses.
            kd: α, the teacher's part of the loss; 0 does without a teacher.
            temperature: of the distillation.
            every: Δ, updates between two choices of the mask; 0 keeps the first.
            decay: λ_max.
            ramp: fraction of the steps over which λ grows from 0 to λ_max.
            tail: fraction of the steps at the end, where lr goes linearly from `lr_min` to 0.
            lr_min: where the cosine ends, as a fraction of lr.
            slorb: initial value of the branch, `mean`, `sum` or `xavier`; `none`: no branch.
            slorb_k: inputs that share a column of the branch.
            train_projection: whether the branch's X is trained (densely) beside Q.
            compat: `released` grows weights where the paper decays them, as the released code.
        """

        lr: float | None = None
        weight_decay: float = 0.1
        warmup: float = 0.05
        tail: float = 0.05
        lr_min: float = 0.1
        beta1: float = 0.9
        beta2: float = 0.95
        kd: float = 0.67
        temperature: float = 2.0
        every: int = 10
        decay: float = 1e-4
        ramp: float = 0.25
        slorb: str = "none"
        slorb_k: int = 16
        train_projection: bool = True
        compat: str = "paper"

    def attach(self, model, ctx) -> None:
        """Masks every target by magnitude, adds branches if asked, fetches the teacher."""
        p = self.params
        _one_of("compat", p.compat, ("paper", "released"))
        _one_of("slorb", p.slorb, ("none", "mean", "sum", "xavier"))
        self.cell, self.steps = ctx.cell, ctx.budget.steps
        self.layers = []
        self.optimizer_ = None
        for target in ctx.targets:
            keep = self._choose(target, target.stored)
            if p.slorb != "none":
                pruned = target.weight.masked_fill(normal_form(keep, target.transposed), 0.0)
                X, Q = slorb(pruned, p.slorb_k, p.slorb, ctx.rng, target.name)
                side_branch.add(target.module, X, Q).down.requires_grad_(p.train_projection)
            target.parametrize(Masked(keep, target.stored.dtype))
            self.layers.append((target, target.module.parametrizations.weight))
        self.teacher = ctx.teacher() if p.kd else None

    def _choose(self, target, stored: Tensor) -> Tensor:
        """The keep mask of a dense stored weight, in the stored layout."""
        scores = {target.name: normal_form(stored.detach(), target.transposed).float().abs()}
        keep = keep_masks(scores, self.cell.pattern, self.cell.sparsity)[target.name]
        return normal_form(keep, target.transposed)

    def step(self, model, progress: float) -> None:
        """Sets λ(t); chooses the mask anew after update 0 and every Δ after it.

        A mask chosen after the last update would never have been trained with: the exported one
        is that of the last forward pass. All follows from `progress`, so training may resume.
        """
        p = self.params
        done = round(progress * self.steps)
        if p.every and 0 < done < self.steps and (done - 1) % p.every == 0:
            for target, (masked, *_), stored in ((t, w, w.original) for t, w in self.layers):
                masked.keep.copy_(self._choose(target, stored))
        if self.optimizer_ is not None:
            self.optimizer_.decay = annealed(progress, p.decay, p.ramp)

    def loss(self, model, inputs, outputs) -> Tensor:
        """α·KD + (1 − α)·task."""
        if self.teacher is None:
            return outputs.loss
        alpha = self.params.kd
        taught = distilled(self.teacher, inputs, outputs.logits, self.params.temperature)
        return alpha * taught + (1.0 - alpha) * outputs.loss

    def param_groups(self, model) -> list[dict]:
        """Settles the learning rate, so that the record tells it."""
        if self.params.lr is None:
            tuned = any(True for _ in head_parameters(model))
            self.params = replace(self.params, lr=5e-5 if tuned else 2e-4)
        return super().param_groups(model)

    def optimizer(self, groups):
        """AdamW whose masked parameters decay where they are pruned."""
        p = self.params
        masks = {weight.original: weight[0].keep for _, weight in self.layers}
        betas = (p.beta1, p.beta2)
        self.optimizer_ = AnnealedAdamW(groups, masks, betas=betas, compat=p.compat)
        return self.optimizer_

    def lr_factor(self, progress: float) -> float:
        """Linear warm-up, cosine to `lr_min`, then linearly to 0."""
        p = self.params
        if progress < p.warmup:
            return progress / p.warmup
        if progress < 1.0 - p.tail:
            along = (progress - p.warmup) / (1.0 - p.tail - p.warmup)
            return p.lr_min + (1.0 - p.lr_min) * 0.5 * (1.0 + math.cos(math.pi * along))
        return p.lr_min * (1.0 - progress) / p.tail if p.tail else 0.0

    def finish(self, model) -> None:
        """W ← m⊙W; a branch stays beside it."""
        merge(model)


class Masked(nn.Module):
    """Maps a stored weight to m⊙W with the gradient straight through; m is in the state dict.

    m is kept in the weight's dtype: a product with booleans takes six times as long on CPUs.
    """

    def __init__(self, keep: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("keep", keep.to(dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The stored weight → its kept entries, others exactly 0."""
        return _StraightThrough.apply(weight, self.keep)


class _StraightThrough(torch.autograd.Function):
    """m⊙W forward, identity backward (arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx, weight, keep):
        return weight * keep

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def annealed(progress: float, strength: float, ramp: float) -> float:
    """λ(t) = λ_max·t/T₀ for t < T₀, then λ_max; t and T₀ as fractions of the steps."""
    return strength if progress >= ramp else strength * progress / ramp


def slorb(
    pruned: Tensor, k: int, init: str, rng: torch.Generator, name: str = "the matrix"
) -> tuple[Tensor, Tensor]:
    """SLoRB's X: (in/k, in) and Q: (out, in/k), with Q·X standing in for what was pruned.

    Args:
        pruned: (1 − m)⊙W, (out, in).
        k: inputs a column of Q stands for.
        init: `mean` (the least-squares fit, given the block indicator X), `sum`, or `xavier`.
        rng: draws X for `xavier`.
        name: for the message.

    Raises:
        BenchError: the width is not divisible by `k`.
    """
    rows, width = pruned.shape
    if k < 1 or width % k:
        raise BenchError(f"ast.slorb_k {k}: {name} has {width} inputs, not a multiple of {k}")
    if init == "xavier":
        X = torch.empty(width // k, width)
        nn.init.xavier_uniform_(X, generator=rng)
        return X.to(pruned), pruned.new_zeros(rows, width // k)
    X = torch.eye(width // k).repeat_interleave(k, dim=1).to(pruned)
    blocks = pruned.view(rows, width // k, k)
    return X, blocks.mean(dim=2) if init == "mean" else blocks.sum(dim=2)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BenchError(f"ast: {name} is {', '.join(allowed)}, not {value!r}")
