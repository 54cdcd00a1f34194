"""SparseSwaps: the best swap of each row, exactly, until none helps (arXiv 2512.10922).

With d = (1 − M)⊙w and c = d·XᵀX, pruning a kept u and restoring a pruned p changes ‖Xd‖² by

    2w_u·c_u + w_u²·G_uu − (2w_p·c_p − w_p²·G_pp) − 2w_u·w_p·G_up,   G = XᵀX
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.layer_problem import Base, NMPattern, base_factors, keep_rows
from methods.shared.one_shot import OneShot

CHUNK = 8  # kept weights of a row that are compared with all pruned ones at a time
LEAST = 1e-6  # of a row's error: a smaller gain is rounding


class SparseSwaps(OneShot):
    """Refines the mask of another method."""

    name: ClassVar[str] = "sparseswaps"
    summary: ClassVar[str] = "Makes the swap that lowers a row's error most, until none does."
    paper: ClassVar[str] = "arXiv 2512.10922, ICML"
    year: ClassVar[int] = 2026
    search: ClassVar[tuple[Setting, ...]] = grid(base=("wanda", "sparsegpt", "magnitude"))

    @parameters
    class Params:
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
    keep, diagonal = keep.clone(), gram.diagonal()
    best = _BestInGroups(gram, n_m[1]) if n_m else _Best(gram)
    rows = torch.arange(len(weight), device=weight.device)
    w, kept = weight, keep.clone()
    lost = w.masked_fill(kept, 0.0)
    c = lost @ gram
    error = (lost * c).sum(dim=1)
    for _ in range(swaps):
        square = w.square() * diagonal
        price = (2 * w * c + square).masked_fill_(~kept, torch.inf)
        gain = (2 * w * c - square).masked_fill_(kept, -torch.inf)
        change, u, p = best(w, price, gain)
        # A row without a swap leaves: those that remain stay in the same order.
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
        self.blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (groups, M, M)

    def __call__(self, w: Tensor, price: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self.m
        w, price, gain = (t.unflatten(1, (-1, m)) for t in (w, price, gain))
        both = 2 * w[..., :, None] * w[..., None, :] * self.blocks
        changes = price[..., :, None] - gain[..., None, :] - both
        change, place = changes.flatten(1).min(dim=1)
        group, u, p = place // (m * m), place // m % m, place % m
        return change, group * m + u, group * m + p


class _Best:
    """Finds the best swap of every row, exactly, without trying all pairs.

    With s_j = |w_j|·√G_jj and ρ_u the largest correlation of input u, the change is at least

        price_u − max_p(gain_p + t·s_p),   t = 2ρ_u·s_u,

    and that maximum is convex in t: a chord between two values of t bounds it. Kept weights are
    tried in the order of their bounds, until the next bound is above the best change.
    """

    def __init__(self, gram: Tensor) -> None:
        self.gram, self.norms = gram, gram.diagonal().sqrt()
        inverse = 1 / self.norms.clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)
        correlations = (gram * inverse).mul_(inverse[:, None]).abs_()
        correlations.fill_diagonal_(0.0)
        self.largest = correlations.amax(dim=1).clamp(max=1.0)

    def __call__(self, w: Tensor, price: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = w.abs() * self.norms
        t = 2 * self.largest * size
        top = t.masked_fill(price.isinf(), 0.0).amax(dim=1, keepdim=True)
        low = gain.amax(dim=1, keepdim=True)
        high = (gain + top * size).amax(dim=1, keepdim=True)
        share = t / top.clamp(min=torch.finfo(t.dtype).tiny)
        bounds, order = (price - low - share * (high - low)).sort(dim=1)
        change, u, p = price.new_full((len(w),), torch.inf), order[:, 0], order[:, 0]
        u, p = u.clone(), p.clone()
        rows = torch.arange(len(w), device=w.device)
        for a in range(0, w.shape[1], CHUNK):
            rows = rows[bounds[rows, a] < change[rows]]
            if not len(rows):
                break
            tried = order[rows, a : a + CHUNK]
            changes = self.gram[tried] * (-2 * w[rows].gather(1, tried)[..., None])
            changes.mul_(w[rows, None]).sub_(gain[rows, None])
            changes.add_(price[rows].gather(1, tried)[..., None])
            found, place = changes.flatten(1).min(dim=1)
            better = found < change[rows]
            some = rows[better]
            change[some], place = found[better], place[better]
            u[some] = tried[better].gather(1, (place // w.shape[1])[:, None])[:, 0]
            p[some] = place % w.shape[1]
        return change, u, p
