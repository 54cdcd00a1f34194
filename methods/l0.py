"""L0 regularisation by hard concrete gates, one a weight (arXiv 1712.01312).

    training   z = clamp(σ((logit u + S)/β)·(ζ − γ) + γ, 0, 1),  u uniform      W̃ = z⊙W
    after      z = clamp(σ(S)·(ζ − γ) + γ, 0, 1)
    loss + λ·mean P(z > 0),  P(z > 0) = σ(S − β·log(−γ/ζ))

As in the movement papers' code: gates on weights, λ constant. A weight is pruned when its gate
after training is exactly zero, S ≤ logit(1/12); all others are scaled by a gate that is not binary.

With `target=lagrangian` an augmented Lagrangian steers 1 − mean P(z > 0) to the cell's sparsity, as
CoFi does (arXiv 2204.00408). In the end the share that was asked for goes, with the lowest S.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bench.api import Context, Field, Setting, parameters
from bench.core.pattern import UNSTRUCTURED
from methods.shared.lagrangian import TargetParams
from methods.shared.learned_scores import LearnedScores
from methods.shared.masks import keep_masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GAMMA, ZETA, BETA = -0.1, 1.1, 2.0 / 3.0
SHUT, AJAR = -20.0, math.log((0.001 - GAMMA) / (ZETA - 0.001))
"""Logits of a gate that is 0, and of one that is 0.001."""


class L0(LearnedScores):
    """L0 penalty on random hard concrete gates; λ or a target decides how much is pruned."""

    name: ClassVar[str] = "l0"
    summary: ClassVar[str] = "Trains a random gate for each weight and penalises open gates."
    paper: ClassVar[str] = "arXiv 1712.01312, ICLR"
    year: ClassVar[int] = 2018
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    uniform: ClassVar[bool] = False
    search: ClassVar[tuple[Setting, ...]] = (
        {},
        {"target": "lagrangian"},
        {"target": "lagrangian", "score_lr": 1e-2},
        {"target": "lagrangian", "score_lr": 2e-2},
        {"target": "lagrangian", "score_lr": 3e-2},
        {"target": "lagrangian", "score_lr": 5e-2},
        {"target": "lagrangian", "score_lr": 2e-1},
        {"target": "lagrangian", "lr": 1e-4},
    )

    @parameters
    class Params(TargetParams):
        """Gates and penalty of the movement paper's code for SQuAD; the sparsity is a label."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate of the weights")
        score_lr: float = Field(
            default=1e-1, gt=0, description="learning rate of the gates' logits"
        )
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of the weights")
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )
        initial: float = Field(
            default=2.197,
            description="logit of every gate at the start; 2.197 opens it with probability 0.9",
        )
        penalty: float = Field(
            default=125.0, ge=0, description="weight of the mean probability that a gate is open"
        )
        freeze_embeddings: bool = Field(
            default=False, description="whether embeddings and their norm are frozen"
        )
        distill: float = Field(
            default=0.0,
            ge=0,
            le=1,
            description="weight of distillation, the task's loss has the rest; 0: no dense cell",
        )
        temperature: float = Field(default=2.0, gt=0, description="temperature of distillation")

    params: Params

    @property
    def promises_sparsity(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the counted sparsity is the cell's: a constant λ cannot promise it."""
        return self.params.target == "lagrangian"

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Gives every weight of every target its gate."""
        self.prepare(model, ctx)
        self.strength = self.params.penalty
        self.layers = []
        for target in ctx.targets:
            layer = HardConcrete(target.stored.shape, self.params.initial).to(ctx.device)
            target.parametrize(layer)
            self.layers.append(layer)

    def penalty(self) -> Tensor:
        """Returns the mean over layers of the mean probability that a gate is open."""
        return torch.stack([open_probability(layer.scores).mean() for layer in self.layers]).mean()

    def expected_sparsity(self) -> Tensor:
        """Returns the share of all gates that are expected to be shut."""
        still_open = [open_probability(layer.scores).sum() for layer in self.layers]
        total = sum(layer.scores.numel() for layer in self.layers)
        return 1.0 - torch.stack(still_open).sum() / total

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← z⊙W with the gates after training."""
        if self.lagrangian is not None:
            self.report["expected_sparsity"] = float(self.expected_sparsity())
            scores: dict[str, Tensor] = {
                str(i): layer.scores.detach() for i, layer in enumerate(self.layers)
            }
            masks = keep_masks(scores, UNSTRUCTURED, self.sparsity, "global")
            for layer, keep in zip(self.layers, masks.values(), strict=True):
                layer.settle(keep)
        super().finish(model)


def open_probability(scores: Tensor) -> Tensor:
    """Returns P(z > 0), elementwise."""
    return torch.sigmoid(scores - BETA * math.log(-GAMMA / ZETA))


class HardConcrete(nn.Module):
    """Maps a stored weight to z⊙W, with a random gate in training and a fixed one after."""

    def __init__(self, shape: torch.Size, initial: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full(shape, initial))

    @torch.no_grad()
    def settle(self, keep: Tensor) -> None:
        """Shuts the gates outside `keep` and leaves all others open, if only by 0.001."""
        self.scores.copy_(torch.where(keep, self.scores.clamp(min=AJAR), SHUT))

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to its gated value in the same layout."""
        if self.training:
            noise, beta = torch.rand_like(self.scores).logit_(), BETA
        else:
            noise, beta = torch.zeros_like(self.scores), 1.0
        gated: Tensor = _Gate.apply(stored, self.scores, noise, beta)
        return gated


class _Gate(torch.autograd.Function):
    """(W, S) → z⊙W with ∂W = G⊙z and ∂S = G⊙W⊙∂z/∂S; only z is kept for the way back.

    Inside (0, 1), σ = (z − γ)/(ζ − γ), so ∂z/∂S = (ζ − γ)·σ(1 − σ)/β = (z − γ)(ζ − z)/((ζ − γ)β).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, noise: Tensor, beta: float) -> Tensor:
        gate = noise.add_(scores).div_(beta).sigmoid_().mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0, 1)
        ctx.save_for_backward(weight, gate)
        ctx.beta = beta
        return weight * gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, gate = ctx.saved_tensors
        # sign(z(1 − z)) is 0 where the clamp has cut, 1 inside.
        slope = (gate - GAMMA).mul_(ZETA - gate).mul_((gate * (1 - gate)).sign_())
        slope.mul_(grad).mul_(weight).div_((ZETA - GAMMA) * ctx.beta)
        return grad * gate, slope, None, None
