"""OWL: outliers decide how sparse a block becomes (arXiv 2310.05175).

D_l = fraction of block l's Wanda scores above M_o times their mean
s_l = s − (d_l − mean d),   d_l = 2λ·(D_l − min D)/(max D − min D)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError
from methods.shared import obs
from methods.shared.blockwise import ColumnNorms, OneShot, walk, wanda_scores
from methods.shared.masks import keep_largest, keep_spread, pruned_count

CEILING = 0.999  # no block is pruned away


class OWL(OneShot):
    """A sparsity for every block, then Wanda, SparseGPT or magnitude."""

    name: ClassVar[str] = "owl"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    uniform: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Params:
        """Defaults are the paper's.

        Attributes:
            base: `wanda`, `sparsegpt` or `magnitude`.
            outlier: M_o, how many times the mean makes an outlier.
            band: λ; the sparsities lie within 2λ.
        """

        base: str = "wanda"
        outlier: float = 5.0
        band: float = 0.08

    def __init__(self, params=None) -> None:
        super().__init__(params)
        if self.params.base not in ("wanda", "sparsegpt", "magnitude"):
            raise BenchError(
                f"owl: base is wanda, sparsegpt or magnitude, not {self.params.base!r}"
            )

    def statistic(self, width: int, device: torch.device):
        """What the base needs."""
        kind = obs.Gram if self.params.base == "sparsegpt" else ColumnNorms
        return kind(width, device)

    def counts(self, model, ctx) -> dict[str, int]:
        """Counts by block, from a pass of the dense model; exact in all."""
        outliers: list[float] = []
        sizes: list[int] = []
        block_of: dict[str, int] = {}

        def visit(inside, found):
            block_of.update((t.name, len(sizes)) for t in inside)
            sizes.append(sum(t.stored.numel() for t in inside))
            scores = [wanda_scores(t.weight.float(), found[t.name].norms) for t in inside]
            outliers.append(outlier_fraction(scores, self.params.outlier))

        walk(model, ctx, ColumnNorms, visit, self.report, prunes=False)
        self.levels = block_sparsities(outliers, sizes, ctx.cell.sparsity, self.params.band)
        total = pruned_count(sum(sizes), ctx.cell.sparsity)
        counts, wanted, done = {}, 0.0, 0
        for target in ctx.targets:
            wanted += target.stored.numel() * self.levels[block_of[target.name]]
            last = target is ctx.targets[-1]
            upto = total if last else int(wanted + 1e-6)
            counts[target.name], done = upto - done, upto
        return counts

    def pruned(self, weight: Tensor, statistic, k: int) -> Tensor:
        """The base pruner on one matrix."""
        if self.params.base == "sparsegpt":
            select = obs.exactly(k, weight.shape[1])
            return obs.sweep(weight, statistic.factor(0.01), select, group=128)
        if self.params.base == "magnitude":
            keep = keep_largest(weight.abs(), k)
        else:
            keep = keep_spread(wanda_scores(weight, statistic.norms), k)
        return weight.masked_fill(~keep, 0.0)


def outlier_fraction(scores: list[Tensor], times: float) -> float:
    """Fraction of all scores above `times` their common mean."""
    n = sum(s.numel() for s in scores)
    mean = sum(s.double().sum() for s in scores) / n
    return float(sum((s > times * mean).sum() for s in scores)) / n


def block_sparsities(
    outliers: list[float], sizes: list[int], sparsity: float, band: float
) -> list[float]:
    """s_l of every block; their mean, weighted by size, is `sparsity`.

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
