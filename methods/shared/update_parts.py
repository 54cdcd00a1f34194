"""Logical matrices with their updates, and the scores that decide what they lose (DSEE)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bench.weights import dead, slicing
from bench.weights.targets import Target
from methods.shared.low_rank_sparse import Update
from methods.shared.masks import keep_largest_global


class Part(NamedTuple):
    """One logical matrix: the rows of a target, with its update if it is q or v."""

    target: Target
    rows: slice
    update: Update | None

    @property
    def weight(self) -> Tensor:
        """The rows of the weight under the update, to write to: (rows, in)."""
        return base(self.target)[self.rows]

    def score(self, by: str) -> Tensor:
        """Returns the size of the sum that `by` names, elementwise: (rows, in).

        Args:
            by: the letters of its terms: W, AB for (α/r)·BA, S for (α/r)·S2.
        """
        if self.update is None:
            return self.weight.float().abs()
        total = self.update.delta("AB" in by, "S" in by)
        return (total + self.weight.float() if "W" in by else total).abs()

    def head_scores(self, by: str, heads: int) -> Tensor:
        """Returns ‖BA + S2‖₁ of every head's rows, plus ‖W‖₁ where `by` has a W: (heads,).

        Sizes are added, not terms, and without α/r: what the released code does with heads.
        """
        assert self.update is not None
        size = self.update.delta("AB" in by, "S" in by).abs() / self.update.scale
        if "W" in by:
            size = size + self.weight.float().abs()
        return size.view(heads, -1).sum(dim=1)


def base(target: Target) -> Tensor:
    """Returns the weight under any parametrization, as a detached (out, in) view to write to."""
    under = parametrize.is_parametrized(target.module, "weight")
    stored = target.module.get_parameter("parametrizations.weight.original" if under else "weight")
    return stored.detach().t() if target.transposed else stored.detach()


def mask_pool(pool: list[Part], by: str, sparsity: float) -> None:
    """Zeroes the weights with the smallest scores of all the parts together."""
    scores = [part.score(by) for part in pool]
    n = sum(score.numel() for score in scores)
    # The paper's count is round(p·n), the suite's floor.
    exact = round(sparsity * n) / n
    for part, keep in zip(pool, keep_largest_global(scores, exact), strict=True):
        part.weight.masked_fill_(~keep, 0.0)


def drop(units: slicing.Units, scores: Tensor, fraction: float, parts: list[Part]) -> None:
    """Zeroes the units with the smallest scores, a fraction of them."""
    erase(units, scores.argsort(stable=True)[: dead.lost_units(units, fraction)], parts)


def erase(units: slicing.Units, gone: Tensor, parts: list[Part]) -> None:
    """Zeroes the units with the given numbers: rows, biases, the update's rows, columns."""
    for target, area in units.rows:
        rows = units.indices(gone, area)
        base(target).index_fill_(0, rows, 0.0)
        if isinstance(bias := target.module.bias, Tensor):
            bias.detach().index_fill_(0, rows, 0.0)
        for part in parts:
            if part.update and part.target.module is target.module and part.rows == area:
                part.update.forget(rows - area.start)
    columns = units.indices(gone, units.width)
    base(units.columns).index_fill_(1, columns, 0.0)


def updates_of(units: slicing.Units, parts: list[Part]) -> list[Part]:
    """Returns the parts with an update that make the units' rows."""
    modules = {id(target.module) for target, _ in units.rows}
    return [part for part in parts if part.update and id(part.target.module) in modules]


def summed(scores: list[Tensor]) -> Tensor:
    """Returns the sum of equal-sized scores."""
    return torch.stack(scores).sum(dim=0)
