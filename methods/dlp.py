"""DLP: the median score of a block decides how sparse it becomes (arXiv 2505.23807).

I_l = median of block l's Wanda scores,   R_l = 1 − I_l/Σ I
s_l = s − (d_l − mean d),   d_l = 2α·(R_l − min R)/(max R − min R)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from bench.api import Context, Field, Setting, grid, parameters
from methods.shared.block_allocation import Allocated, BaseParams, Blocks, stretched

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class DLP(Allocated):
    """Blocks whose median score is small stay denser."""

    name: ClassVar[str] = "dlp"
    summary: ClassVar[str] = (
        "Gives blocks with a smaller median score a lower sparsity, then prunes by another method."
    )
    paper: ClassVar[str] = "arXiv 2505.23807, ICML"
    year: ClassVar[int] = 2025
    search: ClassVar[tuple[Setting, ...]] = grid(alpha=(0.15, 0.05, 0.1, 0.2))

    @parameters
    class Params(BaseParams):
        """The paper's and its code's."""

        alpha: float = Field(
            default=0.15,
            ge=0,
            le=1,
            description="half the width of the band in which the sparsities lie",
        )

    params: Params

    def density(self, model: PreTrainedModel, ctx: Context) -> Blocks:
        """Returns d_l of every block."""
        parts, medians = self.measured(model, ctx, median)
        # Stretched, 1 − I/Σ I and −I are the same; this one has no quotient of zeros.
        return parts, stretched([-value for value in medians], 2 * self.params.alpha)


def median(scores: list[Tensor]) -> float:
    """Returns the median of all scores, the lower one of two."""
    return float(torch.cat([s.flatten() for s in scores]).median())
