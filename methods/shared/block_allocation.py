"""One-shot methods that give each block a sparsity of its own and prune by another method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from bench.api import Context, Field, parameters
from bench.weights.targets import Target
from methods.shared import obs
from methods.shared.blockwise import walk
from methods.shared.input_statistics import ColumnNorms, Statistic, wanda_scores
from methods.shared.layer_problem import Base
from methods.shared.masks import keep_largest, keep_spread, pruned_count
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

CEILING = 0.999  # no block is pruned away

Blocks = tuple[list[list[Target]], list[float]]
"""The targets of every block, and a number for every block."""


@parameters
class BaseParams(ReconstructParams):
    """What prunes, in methods that only share sparsity out."""

    base: Base = Field(default="wanda", description="the method that prunes")


class Allocated(OneShot):
    """A sparsity for every block, then Wanda, SparseGPT or magnitude.

    A subclass says how dense each block stays. Its `Params` are `BaseParams`, and more.

    Attributes:
        levels: the sparsities of the blocks, in the order of `density`.
    """

    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    uniform: ClassVar[bool] = False
    params: BaseParams

    @abstractmethod
    def density(self, model: PreTrainedModel, ctx: Context) -> Blocks:
        """Returns each block's targets and how much denser it stays than others.

        Only differences count: a block that is `d` denser than another is `d` less sparse.
        """

    def measured(
        self, model: PreTrainedModel, ctx: Context, measure: Callable[[list[Tensor]], float]
    ) -> Blocks:
        """Returns `measure` of the Wanda scores of each block, by a pass of the dense model."""
        parts: list[list[Target]] = []
        values: list[float] = []

        def visit(inside: list[Target], found: dict[str, ColumnNorms]) -> None:
            scores = [wanda_scores(t.weight.float(), found[t.name].norms) for t in inside]
            parts.append(inside)
            values.append(measure(scores))

        walk(model, ctx, ColumnNorms, visit, self.report, prunes=False)
        return parts, values

    def counts(self, model: PreTrainedModel, ctx: Context) -> dict[str, int]:
        """Returns counts by block; exact in all together."""
        parts, density = self.density(model, ctx)
        sizes = [sum(t.stored.numel() for t in inside) for inside in parts]
        self.levels = levels(density, sizes, ctx.cell.sparsity)
        level_of = {
            target.name: level
            for inside, level in zip(parts, self.levels, strict=True)
            for target in inside
        }
        total = pruned_count(sum(sizes), ctx.cell.sparsity)
        counts: dict[str, int] = {}
        wanted, done = 0.0, 0
        called = [target for target in ctx.targets if target.name in level_of]
        for target in called:
            wanted += target.stored.numel() * level_of[target.name]
            last = target is called[-1]
            upto = total if last else int(wanted + 1e-6)
            counts[target.name], done = upto - done, upto
        return counts

    def statistic(self, width: int, device: torch.device) -> Statistic:
        """Returns an empty statistic of the kind that the base needs."""
        if self.params.base == "sparsegpt":
            return obs.Gram(width, device)
        return ColumnNorms(width, device)

    def pruned(self, weight: Tensor, statistic: Any, k: int) -> Tensor:
        """Prunes one matrix as the base does."""
        if self.params.base == "sparsegpt":
            select = obs.exactly(k, weight.shape[1])
            return obs.sweep(weight, statistic.factor(0.01, self.sequences), select, group=128)
        if self.params.base == "magnitude":
            keep = keep_largest(weight.abs(), k)
        else:
            keep = keep_spread(wanda_scores(weight, statistic.norms), k)
        return weight.masked_fill(~keep, 0.0)


def stretched(values: list[float], width: float) -> list[float]:
    """Returns the values moved and scaled to [0, width]; all 0 where they are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    return [width * (value - low) / (high - low) for value in values]


def levels(density: list[float], sizes: list[int], sparsity: float) -> list[float]:
    """Returns the sparsity of every block; their mean, weighted by size, is `sparsity`.

    The differences shrink where a block would leave [0, 0.999]: clipping would move the mean.
    """
    mean = sum(d * n for d, n in zip(density, sizes, strict=True)) / sum(sizes)
    above, below = max(density) - mean, mean - min(density)
    if above <= 0 or below <= 0:
        return [sparsity] * len(density)
    room = min(1.0, sparsity / above, max(CEILING - sparsity, 0.0) / below)
    return [sparsity - room * (d - mean) for d in density]
