"""SparseSwaps: the best swap of each row, exactly, until none helps (arXiv 2512.10922).

With d = (1 − M)⊙w and c = d·XᵀX, pruning a kept u and restoring a pruned p changes ‖Xd‖² by

    2w_u·c_u + w_u²·G_uu − (2w_p·c_p − w_p²·G_pp) − 2w_u·w_p·G_up,   G = XᵀX
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.layer_problem import Base, NMPattern, base_factors, keep_rows
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

AT_ONCE = 2**24  # numbers in the largest intermediate tensor: 64 MiB
CHUNK = 4  # kept weights of a row that are compared with all pruned ones at a time
LEAST = 1e-6  # of a row's error: a smaller gain is rounding

Found = tuple[Tensor, Tensor, Tensor]
"""(changes, pruned u, restored p) of every row, each (rows,)."""

_Finder = Callable[[Tensor, Tensor, Tensor], Found]
"""(w, what changing one weight adds to the error, kept), each (rows, in) → the best swaps."""


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

    def statistic(self, width: int, device: torch.device) -> obs.Gram:
        """Returns an empty XᵀX."""
        return obs.Gram(width, device, self.sequences)

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
    if weight.shape[1] == 1:
        return keep
    best: _Finder = _BestInGroups(gram, n_m[1]) if n_m else _Best(gram)
    rows = max(AT_ONCE // (CHUNK * weight.shape[1]), 1)
    parts = zip(weight.split(rows), keep.split(rows), strict=True)
    return torch.cat([_refined_rows(w, gram, kept, swaps, best) for w, kept in parts])


def _refined_rows(w: Tensor, gram: Tensor, keep: Tensor, swaps: int, best: _Finder) -> Tensor:
    keep, diagonal = keep.clone(), gram.diagonal()
    rows, w, kept = torch.arange(len(w), device=w.device), w.clone(), keep.clone()
    lost = w.masked_fill(kept, 0.0)
    c = lost @ gram
    error = (lost * c).sum(dim=1)
    for _ in range(swaps):
        cross = 2 * w * c
        # What changing one weight adds to the error. A weight that is 0 has nothing to change.
        alone = torch.where(kept, cross, -cross).addcmul_(w * w, diagonal)
        change, u, p = best(w, alone.masked_fill_(w == 0, torch.inf), kept)
        # Rows without a swap leave.
        helps = (change < -LEAST * error).nonzero()[:, 0]
        if not len(helps):
            break
        rows, w, kept, c, error = (t[helps] for t in (rows, w, kept, c, error))
        u, p = u[helps, None], p[helps, None]
        kept.scatter_(1, u, False).scatter_(1, p, True)
        keep[rows] = kept
        c += w.gather(1, u) * gram[u[:, 0]] - w.gather(1, p) * gram[p[:, 0]]
        error += change[helps]
    return keep


class _BestInGroups:
    """Finds the best swap inside the groups of M of every row."""

    def __init__(self, gram: Tensor, m: int) -> None:
        self.m = m
        blocks = gram.unflatten(0, (-1, m)).unflatten(2, (-1, m))
        self.blocks = 2 * blocks.diagonal(dim1=0, dim2=2)  # (M, M, groups)

    def __call__(self, w: Tensor, alone: Tensor, kept: Tensor) -> Found:
        m = self.m
        places = [t.unflatten(1, (-1, m)).unbind(2) for t in (w, alone, kept)]
        (w_, alone_, kept_) = ([t.contiguous() for t in place] for place in places)
        changes, groups = [], []
        pairs = list(combinations(range(m), 2))
        for a, b in pairs:
            change = torch.addcmul(
                alone_[a] + alone_[b], w_[a] * self.blocks[a, b], w_[b], value=-1
            )
            least = change.masked_fill_(kept_[a] == kept_[b], torch.inf).min(dim=1)
            changes.append(least.values)
            groups.append(least.indices)
        change, pair = torch.stack(changes, dim=1).min(dim=1)
        group = torch.stack(groups, dim=1).gather(1, pair[:, None])
        both = group * m + torch.tensor(pairs, device=w.device)[pair]
        first = kept.gather(1, both[:, :1])[:, 0]
        u, p = torch.where(first, both.t(), both.flip(1).t())
        return change, u, p


class _Best:
    """Finds the best swap of every row, exactly, without trying all pairs.

    With s_j = |w_j|·√G_jj and ρ_u the largest correlation of input u, the change is at least

        alone_u + min_p(alone_p − t·s_p),   t = 2ρ_u·s_u,

    and that minimum is concave in t: a chord between two values of t bounds it. Kept weights are
    tried in the order of their bounds, until the next bound is above the best change.
    """

    def __init__(self, gram: Tensor) -> None:
        self.gram, self.norms = gram, gram.diagonal().sqrt()
        inverse = 1 / self.norms.clamp(min=torch.finfo(gram.dtype).tiny ** 0.25)
        correlations = (gram * inverse).mul_(inverse[:, None]).abs_()
        self.largest = correlations.fill_diagonal_(0.0).amax(dim=1).clamp(max=1.0)

    def __call__(self, w: Tensor, alone: Tensor, kept: Tensor) -> Found:
        size = w.abs() * self.norms
        t = (2 * self.largest * size).masked_fill_(~kept, 0.0)
        top = t.amax(dim=1, keepdim=True)
        pruned, losable = alone.masked_fill(kept, torch.inf), alone.masked_fill(~kept, torch.inf)
        low = pruned.amin(dim=1, keepdim=True)
        fall = low - (pruned - top * size).amin(dim=1, keepdim=True)
        chord = low - t.div_(top.clamp(min=torch.finfo(t.dtype).tiny)).mul_(fall)
        bounds = chord.add_(losable)
        change = alone.new_full((len(w),), torch.inf)
        u, p = torch.zeros_like(change, dtype=torch.long), torch.ones_like(change, dtype=torch.long)
        rows, count = torch.arange(len(w), device=w.device), min(CHUNK, w.shape[1] - 1)
        while len(rows):
            lowest, tried = bounds[rows].topk(count + 1, dim=1, largest=False)
            following, tried = lowest[:, -1], tried[:, :-1]
            pairs = (-2 * w[rows].gather(1, tried))[..., None] * w[rows, None]
            pairs.mul_(self.gram[tried]).add_(pruned[rows, None])
            least, partner = pairs.min(dim=2)
            least, which = (least + losable[rows].gather(1, tried)).min(dim=1)
            better = least < change[rows]
            some, which = rows[better], which[better, None]
            change[some] = least[better]
            u[some] = tried[better].gather(1, which)[:, 0]
            p[some] = partner[better].gather(1, which)[:, 0]
            bounds[rows[:, None], tried] = torch.inf
            rows = rows[following < change[rows]]
        return change, u, p
