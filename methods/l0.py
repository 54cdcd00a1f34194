"""L0 regularisation by hard concrete gates, one a weight (arXiv 1712.01312).

    training   z = clamp(σ((logit u + S)/β)·(ζ − γ) + γ, 0, 1),  u uniform      W̃ = z⊙W
    after      z = clamp(σ(S)·(ζ − γ) + γ, 0, 1)
    loss + λ·mean P(z > 0),  P(z > 0) = σ(S − β·log(−γ/ζ))

As in the movement papers' code: gates on weights, λ constant. A weight is pruned when its gate
after training is exactly zero, S ≤ logit(1/12); all others are scaled by a gate that is not binary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from methods.movement import Movement

GAMMA, ZETA, BETA = -0.1, 1.1, 2.0 / 3.0


class L0(Movement):
    """L0 penalty on random hard concrete gates; how much is pruned comes out, λ decides."""

    name: ClassVar[str] = "l0"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    promises_sparsity: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Params:
        """The SQuAD recipe of the movement paper's code; the cell's sparsity is a label only.

        Attributes:
            score_lr: of the gates' logits S.
            initial: S at the start, σ(2.197) = 0.9.
            penalty: λ.
            freeze_embeddings: as the released code has it.
            distill: weight α of distillation, the task's loss has 1 − α; 0 needs no dense cell.
            temperature: of the distillation.
        """

        lr: float = 5e-5
        score_lr: float = 1e-1
        weight_decay: float = 0.01
        warmup: float = 0.1
        initial: float = 2.197
        penalty: float = 125.0
        freeze_embeddings: bool = False
        distill: float = 0.0
        temperature: float = 2.0

    def attach(self, model, ctx) -> None:
        """Gives every weight of every target its gate."""
        self.strength = self.params.penalty
        self.prepare(model, ctx)
        self.layers = []
        for target in ctx.targets:
            layer = HardConcrete(target.stored.shape, self.params.initial).to(ctx.device)
            target.parametrize(layer)
            self.layers.append(layer)

    def step(self, model, progress: float) -> None:
        """Nothing is scheduled."""

    def penalty(self) -> Tensor:
        """Mean over layers of the mean probability that a gate is open."""
        return torch.stack([open_probability(layer.scores).mean() for layer in self.layers]).mean()


def open_probability(scores: Tensor) -> Tensor:
    """P(z > 0), elementwise."""
    return torch.sigmoid(scores - BETA * math.log(-GAMMA / ZETA))


class HardConcrete(nn.Module):
    """Maps a stored weight to z⊙W, with a random gate in training and a fixed one after."""

    def __init__(self, shape, initial: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full(shape, initial))

    def forward(self, stored: Tensor) -> Tensor:
        """The stored weight → its gated value in the same layout."""
        if self.training:
            noise = torch.rand_like(self.scores).logit_()
            return _Gate.apply(stored, self.scores, noise, BETA)
        return _Gate.apply(stored, self.scores, torch.zeros_like(self.scores), 1.0)


class _Gate(torch.autograd.Function):
    """(W, S) → z⊙W with ∂W = G⊙z and ∂S = G⊙W⊙∂z/∂S; only z is kept for the way back.

    Inside (0, 1), σ = (z − γ)/(ζ − γ), so ∂z/∂S = (ζ − γ)·σ(1 − σ)/β = (z − γ)(ζ − z)/((ζ − γ)β).
    """

    @staticmethod
    def forward(ctx, weight, scores, noise, beta):
        gate = noise.add_(scores).div_(beta).sigmoid_().mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)
        ctx.save_for_backward(weight, gate)
        ctx.beta = beta
        return weight * gate

    @staticmethod
    def backward(ctx, grad):
        weight, gate = ctx.saved_tensors
        # sign(z(1 − z)) is 0 where the clamp has cut, 1 inside.
        slope = (gate - GAMMA).mul_(ZETA - gate).mul_((gate * (1 - gate)).sign_())
        slope.mul_(grad).mul_(weight).div_((ZETA - GAMMA) * ctx.beta)
        return grad * gate, slope, None, None
