"""OWL: outliers decide how sparse a block becomes (arXiv 2310.05175).

D_l = fraction of block l's Wanda scores above M_o times their mean
s_l = s − (d_l − mean d),   d_l = 2λ·(D_l − min D)/(max D − min D)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.api import Context, Field, Setting, grid, parameters
from bench.weights.targets import Target
from methods.shared import obs
from methods.shared.blockwise import ColumnNorms, Statistic, walk, wanda_scores
from methods.shared.masks import keep_largest, keep_spread, pruned_count
from methods.shared.one_shot import OneShot

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

CEILING = 0.999  # no block is pruned away


class OWL(OneShot):
    """A sparsity for every block, then Wanda, SparseGPT or magnitude."""

    name: ClassVar[str] = "owl"
    summary: ClassVar[str] = (
        "Gives blocks with more outliers a lower sparsity, then prunes by another method."
    )
    paper: ClassVar[str] = "arXiv 2310.05175, ICML"
    year: ClassVar[int] = 2024
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    search: ClassVar[tuple[Setting, ...]] = grid(outlier=(5.0, 3.0, 7.0, 10.0), band=(0.08, 0.04))
    uniform: ClassVar[bool] = False

    @parameters
    class Params:
        """The paper's."""

        base: Literal["wanda", "sparsegpt", "magnitude"] = Field(
            default="wanda", description="the method that prunes"
        )
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

    def statistic(self, width: int, device: torch.device) -> Statistic:
        """Returns an empty statistic of the kind that the base needs."""
        if self.params.base == "sparsegpt":
            return obs.Gram(width, device, self.sequences)
        return ColumnNorms(width, device)

    def counts(self, model: PreTrainedModel, ctx: Context) -> dict[str, int]:
        """Returns counts by block, from a pass of the dense model; exact in all together."""
        outliers: list[float] = []
        sizes: list[int] = []
        block_of: dict[str, int] = {}

        def visit(inside: list[Target], found: dict[str, ColumnNorms]) -> None:
            block_of.update((t.name, len(sizes)) for t in inside)
            sizes.append(sum(t.stored.numel() for t in inside))
            scores = [wanda_scores(t.weight.float(), found[t.name].norms) for t in inside]
            outliers.append(outlier_fraction(scores, self.params.outlier))

        walk(model, ctx, ColumnNorms, visit, self.report, prunes=False)
        self.levels = block_sparsities(outliers, sizes, ctx.cell.sparsity, self.params.band)
        total = pruned_count(sum(sizes), ctx.cell.sparsity)
        counts: dict[str, int] = {}
        wanted, done = 0.0, 0
        called = [target for target in ctx.targets if target.name in block_of]
        for target in called:
            wanted += target.stored.numel() * self.levels[block_of[target.name]]
            last = target is called[-1]
            upto = total if last else int(wanted + 1e-6)
            counts[target.name], done = upto - done, upto
        return counts

    def pruned(self, weight: Tensor, statistic: Any, k: int) -> Tensor:
        """Prunes one matrix as the base does."""
        if self.params.base == "sparsegpt":
            select = obs.exactly(k, weight.shape[1])
            return obs.sweep(weight, statistic.factor(0.01), select, group=128)
        if self.params.base == "magnitude":
            keep = keep_largest(weight.abs(), k)
        else:
            keep = keep_spread(wanda_scores(weight, statistic.norms), k)
        return weight.masked_fill(~keep, 0.0)


def outlier_fraction(scores: list[Tensor], times: float) -> float:
    """Returns the fraction of all scores above `times` their common mean."""
    n = sum(s.numel() for s in scores)
    mean = sum(s.double().sum() for s in scores) / n
    return float(sum((s > times * mean).sum() for s in scores)) / n


def block_sparsities(
    outliers: list[float], sizes: list[int], sparsity: float, band: float
) -> list[float]:
    """Returns s_l of every block; their mean, weighted by size, is `sparsity`.

    The band is narrowed where a block would leave [0, 0.999] (the reference clips, which moves the
    mean), and is nothing where all blocks have as many outliers.
    """
    low, high = min(outliers), max(outliers)
    if low == high:
        return [sparsity] * len(outliers)
    extra = [2 * band * (d - low) / (high - low) for d in outliers]
    mean = sum(e * n for e, n in zip(extra, sizes, strict=True)) / sum(sizes)
    above, below = max(extra) - mean, mean - min(extra)
    room = min(1.0, sparsity / above, max(CEILING - sparsity, 0.0) / below)
    return [sparsity - room * (e - mean) for e in extra]
