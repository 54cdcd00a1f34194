"""Reordering channels so that N:M groups keep more (RIA's channel permutation).

Which inputs of a matrix make a group is a matter of their order. The inputs of two matrices of a
block can be reordered for nothing: FFN neurons, and the values inside an attention head. Their rows
in the matrices before move with them, so the model computes the same. All other inputs are the
residual stream: to reorder them for one matrix would cost a gather at inference.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.api import BenchError
from bench.weights import slicing
from bench.weights.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Largest change of the logits, relative to the largest logit, that rounding may explain."""


@dataclass(frozen=True)
class Channels:
    """Channels that may change places among themselves.

    Attributes:
        makers: the matrices that make them, with the rows (n,) of each.
        reader: the matrix that reads them.
        columns: (copies, n): several query heads read the values of one head.
    """

    makers: tuple[tuple[Target, Tensor], ...]
    reader: Target
    columns: Tensor

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Puts channel `order[j]` at place j; the model computes the same as before."""
        for target, rows in self.makers:
            weight = target.weight.clone()
            weight[rows] = weight[rows[order]]
            target.write(weight)
            bias: Any = target.module.bias
            if bias is not None:
                bias[rows] = bias[rows[order]]
        weight = self.reader.weight.clone()
        for columns in self.columns:
            weight[:, columns] = weight[:, columns[order]]
        self.reader.write(weight)

    def stacked(self, scores: Tensor) -> Tensor:
        """Returns scores (out, in) of the reader by channel: (copies · out, n)."""
        return torch.cat([scores[:, columns] for columns in self.columns])


def foldable(model: PreTrainedModel, size: int) -> dict[str, list[Channels]]:
    """Returns the channels that may be reordered, by the name of the matrix that reads them.

    Args:
        model: of a layout that `bench.weights.slicing` knows.
        size: M; heads whose size is no multiple of it are left out, as groups would cross them.

    Raises:
        BenchError: the layout of a block is unknown.
    """
    found: dict[str, list[Channels]] = {}
    for heads, neurons in slicing.units(model):
        all_columns = _range(0, neurons.count, neurons.columns)
        makers = tuple((t, _range(area.start, neurons.count, t)) for t, area in neurons.rows)
        found[neurons.columns.name] = [Channels(makers, neurons.columns, all_columns[None])]
        values, area = heads.rows[2]
        n = (area.stop - area.start) // heads.count
        if n % size:
            continue
        columns = _range(0, heads.width.stop, heads.columns).view(heads.count, -1, n)
        rows = _range(area.start, heads.count * n, values).view(heads.count, n)
        found[heads.columns.name] = [
            Channels(((values, rows[h]),), heads.columns, columns[h]) for h in range(heads.count)
        ]
    return found


def _range(start: int, n: int, target: Target) -> Tensor:
    return torch.arange(start, start + n, device=target.stored.device)


@torch.no_grad()
def check(model: PreTrainedModel, size: int, batch: dict[str, Tensor]) -> None:
    """Tries on a copy, in float32, whether a model's outputs stay when channels are turned round.

    Args:
        model: as for `foldable`.
        size: M.
        batch: inputs.

    Raises:
        BenchError: something between the matrices tells channels apart, as a norm does.
    """
    twin: Any = copy.deepcopy(model).float().eval()
    before = twin(**batch).logits
    for channels in chain.from_iterable(foldable(twin, size).values()):
        channels.permute(torch.arange(channels.columns.shape[1], device=before.device).flip(0))
    if not slicing.moved(before, twin(**batch).logits) <= TOLERANCE:
        raise BenchError(
            f"method ria: permute folded: {type(model).__name__} computes something else when "
            "neurons or values change places; use permute none"
        )


def best_order(scores: Tensor, n: int, m: int) -> Tensor:
    """Returns the order of the columns in which N:M groups keep most; the old one if none is found.

    As the paper does: columns, sorted by their sums, are dealt to the groups in turns (every second
    turn backwards). Then each turn's columns are dealt again, best by linear sum assignment, while
    the others stay.

    Args:
        scores: (rows, columns).
        n: kept in a group.
        m: size of a group, which divides the columns.
    """
    from scipy.optimize import linear_sum_assignment

    groups = scores.shape[1] // m
    turns = scores.sum(dim=0).argsort(stable=True).view(m, groups)
    turns[1::2] = turns[1::2].flip(1)
    dealt = turns.t().contiguous()  # (groups, m)
    for turn in range(m):
        others = dealt[:, [t for t in range(m) if t != turn]]
        # A newcomer adds what it has above the smallest that its group would keep without it.
        bar = scores[:, others].topk(n, dim=2).values[..., -1]
        mine = scores[:, dealt[:, turn]]
        gains = [(mine - bar[:, g, None]).clamp(min=0).sum(dim=0) for g in range(groups)]
        _, places = linear_sum_assignment(torch.stack(gains, dim=1).cpu().numpy(), maximize=True)
        dealt[torch.from_numpy(places).to(dealt.device), turn] = dealt[:, turn].clone()
    order = dealt.flatten()
    same = torch.arange(scores.shape[1], device=scores.device)
    return order if kept(scores[:, order], n, m) > kept(scores, n, m) else same


def kept(scores: Tensor, n: int, m: int) -> float:
    """Returns the sum of the scores that N:M keeps."""
    return float(scores.reshape(-1, m).topk(n, dim=1).values.sum(dtype=torch.float64))
