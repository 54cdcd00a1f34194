"""Random pruning: the control that any method must beat (methods/README.md, random)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Context
from bench.weights.targets import Target
from methods.shared.one_shot import ByScores


class Random(ByScores):
    """Keeps weights drawn uniformly, as many in each matrix as magnitude pruning would."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "Prunes weights at random, as many as magnitude would: the control."
    version: ClassVar[int] = 2

    def scores(self, target: Target, ctx: Context) -> Tensor:
        """Returns uniform scores, (out, in); a weight that is 0 already goes first."""
        drawn = torch.rand(target.shape, generator=ctx.rng)
        return drawn.to(ctx.device).masked_fill_(target.weight == 0, -1.0)
