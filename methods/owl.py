"""OWL: outliers decide how sparse a block becomes (arXiv 2310.05175).

D_l = fraction of block l's Wanda scores above M_o times their mean
s_l = s − (d_l − mean d),   d_l = 2λ·(D_l − min D)/(max D − min D)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.api import Context, Field, Setting, grid, parameters
from methods.shared.block_allocation import Allocated, BaseParams, Blocks, stretched

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class OWL(Allocated):
    """Blocks with more outliers stay denser."""

    name: ClassVar[str] = "owl"
    summary: ClassVar[str] = (
        "Gives blocks with more outliers a lower sparsity, then prunes by another method."
    )
    paper: ClassVar[str] = "arXiv 2310.05175, ICML"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2
    search: ClassVar[tuple[Setting, ...]] = grid(outlier=(5.0, 3.0, 7.0, 10.0), band=(0.08, 0.04))

    @parameters
    class Params(BaseParams):
        """The paper's."""

        outlier: float = Field(
            default=5.0,
            gt=0,
            description="multiple of the mean score above which a score is an outlier",
        )
        band: float = Field(
            default=0.08,
            ge=0,
            le=1,
            description="half the width of the band in which the sparsities lie",
        )

    params: Params

    def density(self, model: PreTrainedModel, ctx: Context) -> Blocks:
        """Returns d_l of every block."""
        parts, outliers = self.measured(
            model, ctx, lambda scores: outlier_fraction(scores, self.params.outlier)
        )
        return parts, stretched(outliers, 2 * self.params.band)


def outlier_fraction(scores: list[Tensor], times: float) -> float:
    """Returns the fraction of all scores above `times` their common mean."""
    n = sum(s.numel() for s in scores)
    mean = sum(s.double().sum() for s in scores) / n
    return float(sum((s > times * mean).sum() for s in scores)) / n
