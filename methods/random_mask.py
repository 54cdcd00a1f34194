"""Random pruning: the control that any method must beat."""

from __future__ import annotations

from typing import ClassVar

import torch

from methods.magnitude import Magnitude


class RandomMask(Magnitude):
    """Keeps weights drawn uniformly, as many in each matrix as magnitude pruning would."""

    name: ClassVar[str] = "random"

    def scores(self, target, ctx):
        """Uniform scores, (out, in)."""
        drawn = torch.rand(target.shape, generator=ctx.rng)
        return drawn.to(ctx.device)
