"""SparseSwaps: the best swap of each row, exactly, until none helps (arXiv 2512.10922).

With d = (1 − M)⊙w and c = d·XᵀX, pruning a kept u and restoring a pruned p changes ‖Xd‖² by

    2w_u·c_u + w_u²·G_uu − (2w_p·c_p − w_p²·G_pp) − 2w_u·w_p·G_up,   G = XᵀX
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.layer_problem import Base, NMPattern, base_factors, keep_rows
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Pairs of weights that are compared at a time: what a cache or part of a GPU's memory holds."""

LEAST = 1e-6  # of a row's error: a smaller gain is rounding

Found = tuple[Tensor, Tensor, Tensor]
"""(changes, pruned u, restored p) of every row, each (rows,)."""


class SparseSwaps(OneShot):
    """Refines the mask of another method."""

    name: ClassVar[str] = "sparseswaps"
    summary: ClassVar[str] = "Makes the swap that lowers a row's error most, until none does."
    paper: ClassVar[str] = "arXiv 2512.10922, preprint"
    year: ClassVar[int] = 2025
    search: ClassVar[tuple[Setting, ...]] = grid(base=("wanda", "sparsegpt", "magnitude"))

    @parameters
    class Params(ReconstructParams):
        """The paper's."""

        base: Base = Field(default="wanda", description="the method whose mask is the first")
        swaps: int = Field(default=100, ge=0, description="swaps in a row, at most")

    params: Params

    statistic = obs.Gram

    def pruned(self, weight: Tensor, statistic: obs.Gram, k: int) -> Tensor:
        """Masks one matrix."""
        gram, factors = statistic.once(self._with_factors)
        keep = keep_rows(weight.abs() * factors, k, self.n_m)
        keep = refined(weight, gram, keep, self.params.swaps, self.n_m)
        return weight.masked_fill(~keep, 0.0)

    def _with_factors(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        norms = gram.diagonal().sqrt()
        return gram, base_factors(self.params.base, norms, gram, self.sequences)


def refined(
    weight: Tensor, gram: Tensor, keep: Tensor, swaps: int, n_m: NMPattern = None
) -> Tensor:
    """Returns the keep mask after the swaps; every row, and every group, keeps as many as before.

    Args:
        weight: (out, in).
        gram: XᵀX, (in, in).
        keep: (out, in), the first mask.
        swaps: at most, in a row.
        n_m: swaps stay inside groups of M.
    """
    width = weight.shape[1]
    if width == 1:
        return keep
    pairs = width * n_m[1] if n_m else width * width // 4
    rows = max(AT_ONCE.get(weight.device.type, AT_ONCE["cuda"]) // pairs, 1)
    parts = []
    for w, kept in zip(weight.split(rows), keep.split(rows), strict=True):
        found = _InGroups(w, gram, kept, n_m[1]) if n_m else _Anywhere(w, gram, kept)
        parts.append(_refined_rows(found, gram, kept, swaps))
    return torch.cat(parts)


def _refined_rows(swap: _Swaps, gram: Tensor, keep: Tensor, swaps: int) -> Tensor:
    keep, diagonal = keep.clone(), gram.diagonal()
    rows = torch.arange(len(keep), device=keep.device)
    lost = swap.w.masked_fill(keep, 0.0)
    c = lost @ gram
    error = (lost * c).sum(dim=1)
    for _ in range(swaps):
        w, kept = swap.w, swap.kept
        cross = 2 * w * c
        # What changing one weight adds to the error. A weight that is 0 has nothing to change.
        alone = torch.where(kept, cross, -cross).addcmul_(w * w, diagonal)
        change, u, p = swap.best(alone.masked_fill_(w == 0, torch.inf))
        # Rows without a swap leave.
        helps = (change < -LEAST * error).nonzero()[:, 0]
        if not len(helps):
            break
        if len(helps) < len(rows):
            rows, c, error, change, u, p = (t[helps] for t in (rows, c, error, change, u, p))
            swap.stay(helps)
        swap.make(u, p)
        keep[rows] = swap.kept
        u, p = u[:, None], p[:, None]
        c += swap.w.gather(1, u) * gram[u[:, 0]] - swap.w.gather(1, p) * gram[p[:, 0]]
        error += change
    return keep


class _Swaps(ABC):
    """Rows whose weights are swapped, all of them once at a time.

    Attributes:
        w: weights, (rows, in).
        kept: their mask at present.
    """

    def __init__(self, w: Tensor, gram: Tensor, kept: Tensor) -> None:
        self.w, self.gram, self.kept = w, gram, kept.clone()

    @abstractmethod
    def best(self, alone: Tensor) -> Found:
        """Finds the best swap of every row.

        Args:
            alone: what changing one weight adds to the error, (rows, in).
        """

    def stay(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.w, self.kept = self.w[rows], self.kept[rows]

    def make(self, u: Tensor, p: Tensor) -> None:
        """Prunes u and restores p, which `best` has found, in every row."""
        self.kept.scatter_(1, u[:, None], False).scatter_(1, p[:, None], True)


class _InGroups(_Swaps):
    """Swaps inside the groups of M of a row."""

    def __init__(self, w: Tensor, gram: Tensor, kept: Tensor, m: int) -> None:
        super().__init__(w, gram, kept)
        self.m = m
        blocks = gram.unflatten(0, (-1, m)).unflatten(2, (-1, m))
        self.blocks = 2 * blocks.diagonal(dim1=0, dim2=2)  # (M, M, groups)

    def best(self, alone: Tensor) -> Found:
        """Compares the pairs of all groups, one pair of places at a time."""
        m = self.m
        places = [t.unflatten(1, (-1, m)).unbind(2) for t in (self.w, alone, self.kept)]
        (w, alone_, kept) = ([t.contiguous() for t in place] for place in places)
        changes, groups = [], []
        pairs = list(combinations(range(m), 2))
        for a, b in pairs:
            change = torch.addcmul(alone_[a] + alone_[b], w[a] * self.blocks[a, b], w[b], value=-1)
            least = change.masked_fill_(kept[a] == kept[b], torch.inf).min(dim=1)
            changes.append(least.values)
            groups.append(least.indices)
        change, pair = torch.stack(changes, dim=1).min(dim=1)
        group = torch.stack(groups, dim=1).gather(1, pair[:, None])
        both = group * m + torch.tensor(pairs, device=self.w.device)[pair]
        first = self.kept.gather(1, both[:, :1])[:, 0]
        u, p = torch.where(first, both.t(), both.flip(1).t())
        return change, u, p


class _Anywhere(_Swaps):
    """Swaps of any kept with any pruned weight of a row.

    What a pair shares, 2w_u·w_p·G_up, is computed once. A swap changes one row and one column of
    it, so each search is one pass over (kept, pruned) numbers. Where rows keep different numbers
    of weights, the shorter lists are filled up with weights that are never chosen; no list is
    empty.

    Attributes:
        us: kept inputs of every row, (rows, most kept).
        ps: pruned inputs of every row, (rows, most pruned).
        shared: 2w_u·w_p·G_up, (rows, most kept, most pruned).
    """

    def __init__(self, w: Tensor, gram: Tensor, kept: Tensor) -> None:
        super().__init__(w, gram, kept)
        order = kept.sort(dim=1, descending=True, stable=True).indices
        counts = kept.sum(dim=1)
        most, least = counts.max().clamp(min=1), counts.min().clamp(max=w.shape[1] - 1)
        self.us, self.ps = order[:, :most].clone(), order[:, least:].clone()
        self.no_u, self.no_p = ~kept.gather(1, self.us), kept.gather(1, self.ps)
        self.shared = gram[self.us[:, :, None], self.ps[:, None, :]]
        self.shared *= 2 * w.gather(1, self.us)[:, :, None]
        self.shared *= w.gather(1, self.ps)[:, None, :]

    def best(self, alone: Tensor) -> Found:
        """Compares all pairs."""
        of_u = alone.gather(1, self.us).masked_fill_(self.no_u, torch.inf)
        of_p = alone.gather(1, self.ps).masked_fill_(self.no_p, torch.inf)
        # Two passes without indices are faster than one with them.
        change, self.i = (of_p[:, None] - self.shared).amin(dim=2).add_(of_u).min(dim=1)
        row = torch.arange(len(change), device=change.device)
        self.j = (of_p - self.shared[row, self.i]).argmin(dim=1)
        return change, self.us[row, self.i], self.ps[row, self.j]

    def stay(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        super().stay(rows)
        for name in ("us", "ps", "no_u", "no_p", "shared", "i", "j"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def make(self, u: Tensor, p: Tensor) -> None:
        """Prunes u and restores p, and computes anew what they share with others."""
        super().make(u, p)
        row = torch.arange(len(u), device=u.device)
        self.us[row, self.i], self.ps[row, self.j] = p, u
        self.shared[row, self.i] = self._shared(p, self.ps)
        self.shared[row, :, self.j] = self._shared(u, self.us)

    def _shared(self, one: Tensor, others: Tensor) -> Tensor:
        one = one[:, None]
        return 2 * self.w.gather(1, one) * self.w.gather(1, others) * self.gram[one, others]
