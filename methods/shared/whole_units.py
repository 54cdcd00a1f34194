"""The base of the methods that prune heads and FFN neurons by what the next matrix reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bench.api import Context, Expected
from bench.weights import slicing
from bench.weights.slicing import Units
from methods.shared.blockwise import walk
from methods.shared.input_statistics import Statistic
from methods.shared.one_shot import TrainingFree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrunesUnits(TrainingFree):
    """A method that zeroes whole heads and neurons, from a statistic of what reads them.

    Query heads that share a key head are one unit. One head and one neuron of a block remain.

    Attributes:
        report: seconds in forward passes (`forward_s`) and in pruning (`prune_s`), all blocks.
    """

    patterns: ClassVar[tuple[str, ...]] = ("heads+neurons", "heads", "neurons")
    promises_sparsity: ClassVar[bool] = False  # units are removed whole
    uniform: ClassVar[bool] = False

    @abstractmethod
    def prune(self, model: PreTrainedModel, ctx: Context, groups: list[Units]) -> None:
        """Zeroes units of the groups: the heads of a block, or its neurons."""

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Prunes the kinds of units that the pattern names.

        Raises:
            BenchError: the model's heads and neurons are not known.
        """
        self.report = {"forward_s": 0.0, "prune_s": 0.0}
        pattern = ctx.cell.pattern
        groups = [
            group
            for heads, neurons in slicing.units(model)
            for group, wanted in ((heads, pattern.heads), (neurons, pattern.neurons))
            if wanted
        ]
        if ctx.cell.sparsity:
            self.prune(model, ctx, groups)

    def read(
        self,
        model: PreTrainedModel,
        ctx: Context,
        groups: list[Units],
        statistic: Callable[[int, torch.device], Any],
        visit: Callable[[Units, Any], None],
        prunes: bool,
    ) -> None:
        """Calls `visit` with each group and the statistic of the inputs of what reads it."""
        by_name = {group.columns.name: group for group in groups}

        def look(inside: list[Any], found: dict[str, Statistic]) -> None:
            for target in inside:
                visit(by_name[target.name], found.pop(target.name))

        readers = ctx._replace(targets=[group.columns for group in groups])
        walk(model, readers, statistic, look, self.report, prunes)

    def expected(self, ctx: Context) -> Expected | None:
        """Returns the shares of heads and neurons that go."""
        pattern, s = ctx.cell.pattern, ctx.cell.sparsity
        return Expected(heads=s if pattern.heads else 0.0, neurons=s if pattern.neurons else 0.0)


def by_unit(group: Units, columns: Tensor) -> Tensor:
    """Returns numbers of the columns of what reads the units, (…, in), as (…, units, share)."""
    return columns.view(*columns.shape[:-1], group.count, -1)


def elements(group: Units) -> int:
    """Returns the weights of one unit: its rows, and the columns that read it."""
    rows = sum((area.stop - area.start) * target.shape[1] for target, area in group.rows)
    columns: int = group.columns.shape[0] * group.width.stop
    return int(rows + columns) // group.count
