"""Training towards a sparsity: an augmented Lagrangian whose target rises (CoFi, arXiv 2204.00408).

    loss + λ₁·g + λ₂·g²,   g = t − ŝ,   λ₁ ← λ₁ + η·g

ŝ is the expected sparsity, a differentiable function of the gates, and t its target. The weights
descend and λ₁ ascends: it grows for as long as too little is pruned, and shrinks for as long as
too much is. λ₂ is constant, as in the textbook's method of multipliers: in short runs λ₁ alone
overshoots.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bench.api import Field, parameters


@parameters
class TargetParams:
    """How the sparsity is decided: parameters of every method whose gates learn it."""

    target: Literal["penalty", "lagrangian"] = Field(
        default="penalty",
        description="penalty: λ is given, and the sparsity a label; lagrangian: a multiplier moves "
        "until the expected sparsity is the cell's",
    )
    target_ramp: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="fraction of the steps in which the target rises from 0, lagrangian only",
    )
    multiplier_lr: float = Field(
        default=1.0, gt=0, description="learning rate of the multiplier, lagrangian only"
    )
    square: float = Field(
        default=500.0,
        ge=0,
        description="weight of the squared distance from the target, lagrangian only",
    )


class Lagrangian(nn.Module):
    """The constraint's term and its multiplier λ₁, 0 at first.

    Args:
        rate: η.
        square: λ₂.
        device: where the gates are.

    Attributes:
        first: λ₁.
        gap: g of the last update.
        target: t.
    """

    first: Tensor
    gap: Tensor

    def __init__(self, rate: float, square: float, device: torch.device) -> None:
        super().__init__()
        self.rate, self.square, self.target = rate, square, 0.0
        self.register_buffer("first", torch.zeros((), device=device))
        self.register_buffer("gap", torch.zeros((), device=device))

    def term(self, sparsity: Tensor) -> Tensor:
        """Returns what is added to the loss.

        Args:
            sparsity: ŝ, a scalar with a gradient.
        """
        gap = self.target - sparsity
        self.gap = gap.detach()
        return self.first * gap + self.square * gap.square()

    def ascend(self, target: float) -> None:
        """Moves λ₁ by the last gap, once an update, and sets the next target."""
        self.first = self.first + self.rate * self.gap
        self.target = target


def rising(progress: float, end: float, final: float) -> float:
    """Returns the target at `progress`: it rises evenly from 0 and is `final` from `end` on."""
    return final * min(progress / end, 1.0) if end else final
