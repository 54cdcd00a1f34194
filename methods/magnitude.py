"""One-shot magnitude pruning (methods/README.md, magnitude)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.api import Context
from bench.weights.targets import Target
from methods.shared.one_shot import ByScores

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude(ByScores):
    """Keeps the largest |W|; no training afterwards."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "Prunes the smallest weights once, without training."
    version: ClassVar[int] = 2

    def scores(self, target: Target, ctx: Context) -> Tensor:
        """Returns |W|, (out, in), in float32 so that half precision makes no ties."""
        return target.weight.float().abs()
