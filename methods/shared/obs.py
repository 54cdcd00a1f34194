"""Pruning column by column with optimal-brain-surgeon updates, fast (arXiv 2301.00774).

The published form takes R, the upper Cholesky factor of H⁻¹, and for every column j

    e_j = (w_j − ŵ_j)/R_jj,   w_l ← w_l − e_j·R_jl  for l > j.

With H = U·Uᵀ, U upper triangular, RᵀR = U⁻ᵀU⁻¹ and so R = U⁻¹: the Cholesky factor of H with both
axes reversed, reversed back, and inverted. But R is hardly needed. All updates together are
Ŵ = W − E·R, so E = D·U with D = W − Ŵ the distance from the ORIGINAL weights; and before a block of
columns G the columns F have been done, with R_FG = −R_FF·U_FG·R_GG, so that G stands at

    W_G − E_F·R_FG = W_G + D_F·U_FG·R_GG.

What is left to invert are the corners U_GG of the blocks, and the sum looks left: a weight is read
and written once a block, not once for every block before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.api import BenchError
from methods.shared.masks import keep_largest, keep_n_largest

Select = Callable[[Tensor, int, int], Tensor]
"""(scores (columns, out), first column, last + 1) → bool, true = pruned."""

Rounding = Callable[[Tensor], Tensor]
"""A column (out,) → the same on its grid."""

LEAF = 16  # columns within which single columns are updated; by measurement

T = TypeVar("T")


class Gram:
    """XᵀX over all calibration tokens, float32, (in, in); used up by `once`.

    Args:
        width: in.
        device: where it is kept.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sum: Tensor | None = torch.zeros(width, width, device=device)
        self._made: Any = None

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        assert self.sum is not None, "add comes before once"
        x = x.float()
        self.sum.addmm_(x.t(), x)

    @property
    def finite(self) -> bool:
        """Whether all inputs were finite; an infinite or missing number reaches the diagonal."""
        return self.sum is None or bool(self.sum.diagonal().isfinite().all())

    def once(self, make: Callable[[Tensor], T]) -> T:
        """Returns `make` of the sum, computed once for all matrices that share this input.

        What takes O(in³) belongs here. The sum is freed; a method has one `make`.
        """
        if self.sum is not None:
            self._made, self.sum = make(self.sum), None
        made: T = self._made
        return made

    def factor(self, percdamp: float, sequences: int) -> tuple[Tensor, Tensor]:
        """Returns `factorise` of the sum."""
        return self.once(lambda gram: factorise(gram, percdamp, sequences))


def factorise(gram: Tensor, percdamp: float, sequences: int = 2) -> tuple[Tensor, Tensor]:
    """Returns damped H = U·Uᵀ as what the sweep needs.

    As published: an input that was always 0 (dead) gets H_jj = 1, and then a fraction of the mean
    of the whole diagonal is added. H is (2/B)·XᵀX there, so in the units of `gram` that 1 is B/2.
    The damping grows tenfold while the factorisation fails.

    Args:
        gram: XᵀX, (in, in).
        percdamp: damping as a fraction of the mean diagonal.
        sequences: B; 2 where `gram` is H itself.

    Returns:
        U (in, in), and which inputs are dead (in,), bool.

    Raises:
        BenchError: kind `nan`; the inputs are not finite.
    """
    dead = gram.diagonal() == 0
    ones = dead * (sequences / 2)
    mean = (gram.diagonal() + ones).mean()
    if not bool(torch.isfinite(mean)):
        raise BenchError("the calibration inputs of a matrix are not finite", "nan")
    reversed_ = gram.flip(0, 1)
    diagonal = reversed_.diagonal()
    diagonal += ones.flip(0)
    damped = 0.0
    while True:
        diagonal += (percdamp - damped) * mean
        lower, failed = torch.linalg.cholesky_ex(reversed_)
        if not bool(failed):
            break
        damped, percdamp = percdamp, max(10 * percdamp, 1e-4)
        if percdamp > 1e3:
            raise BenchError("the calibration inputs of a matrix are not finite", "nan")
    return lower.flip(0, 1), dead


def sweep(
    weight: Tensor,
    factor: tuple[Tensor, Tensor],
    select: Select,
    group: int,
    blocksize: int = 128,
    quantize: Rounding | None = None,
) -> Tensor:
    """Prunes left to right; what is kept makes up for what went.

    Weights that are 0 already are pruned first and stay 0, also where that is more than `select`
    asks for.

    Args:
        weight: (out, in).
        factor: of `factorise`.
        select: chooses within `group` columns, from W²/R_jj² at their current weights.
        group: columns chosen at once.
        blocksize: columns a block; a speed knob unless it is the group.
        quantize: rounds a column (out,) to its grid; None for none.

    Returns:
        The new weight, (out, in).
    """
    upper, dead = factor
    # Columns of W as rows in memory: all below is contiguous.
    columns = weight.t().clone(memory_format=torch.contiguous_format)
    moved = torch.empty_like(columns)
    zeros = columns == 0
    absent = zeros if bool(zeros.any()) else None
    levels = _levels(group, blocksize)
    for a in range(0, len(columns), levels[0]):
        corner = slice(a, a + levels[0])
        current = columns[corner].clone()
        eye = torch.eye(len(current), dtype=upper.dtype, device=upper.device)
        R = torch.linalg.solve_triangular(upper[corner, corner], eye, upper=True)
        if a > 0:
            current.addmm_(R.t(), upper[:a, corner].t() @ moved[:a])
        scale = R.diagonal().square().reciprocal().masked_fill(dead[corner], 0.0)

        choose = partial(_choose, select, current, scale, a, absent)
        _Block(current, R, group, choose, quantize).sweep(0, len(current), levels)
        torch.sub(columns[corner], current, out=moved[corner])
        columns[corner] = current
    return columns.t().contiguous()


def _choose(
    select: Select,
    current: Tensor,
    scale: Tensor,
    a: int,
    absent: Tensor | None,
    c: int,
    d: int,
) -> Tensor:
    scores = current[c:d].square().mul_(scale[c:d, None])
    if absent is None:
        return select(scores, a + c, a + d)
    # An update may have filled them.
    before = absent[a + c : a + d]
    return select(scores.masked_fill_(before, -1.0), a + c, a + d) | before


class _Block:
    """The published steps inside one block, on columns `current`: (columns, out), in place.

    A class, as a nested function that calls itself lives, with all it has seen, until the garbage
    collector finds it: memory would grow with depth.
    """

    def __init__(
        self,
        current: Tensor,
        R: Tensor,
        group: int,
        choose: Callable[[int, int], Tensor],
        quantize: Rounding | None,
    ) -> None:
        self.current, self.group, self.choose, self.quantize = current, group, choose, quantize
        self.steps = R / R.diagonal()[:, None]
        self.changes = torch.empty_like(current)
        self.pruned = torch.empty_like(current)  # 1 where pruned

    def sweep(self, low: int, high: int, sizes: list[int]) -> None:
        """Columns `low` to `high`, in pieces of the first size, these in ones of the next."""
        size, *inner = sizes
        current, changes = self.current, self.changes
        for c in range(low, high, size):
            d = min(c + size, high)
            if c > low:
                current[c:d].addmm_(self.steps[low:c, c:d].t(), changes[low:c], alpha=-1)
            if size == self.group:
                self.pruned[c:d] = self.choose(c, d)
            if inner:
                self.sweep(c, d, inner)
            else:
                self._column(current[c], changes[c], self.pruned[c])

    def _column(self, column: Tensor, change: Tensor, pruned: Tensor) -> None:
        if self.quantize is None:
            torch.mul(column, pruned, out=change)
        else:
            torch.addcmul(column, self.quantize(column), 1.0 - pruned, value=-1, out=change)
        column.sub_(change)


def _levels(group: int, blocksize: int) -> list[int]:
    """Returns nested sizes, the block's first, down to single columns; a group is never cut."""
    whole = [max(size // group, 1) * group for size in (blocksize, LEAF)]
    return sorted({*whole, group, min(LEAF, group), 1}, reverse=True)


def exactly(k: int, width: int) -> Select:
    """Prunes `k` in all of the matrix; blocks share them by width, rounded cumulatively."""

    def select(scores: Tensor, a: int, b: int) -> Tensor:
        return ~keep_largest(scores, k * b // width - k * a // width)

    return select


def threshold(sparsity: float) -> Select:
    """The reference's rule: up to and including order statistic ⌊n·s⌋, so one too many a block."""

    def select(scores: Tensor, a: int, b: int) -> Tensor:
        k = int(scores.numel() * sparsity)
        return scores <= scores.flatten().kthvalue(min(k + 1, scores.numel())).values

    return select


def n_of_m(n: int) -> Select:
    """Keeps the `n` largest of the group, in every row."""
    return lambda scores, a, b: ~keep_n_largest(scores, n)


def rounding(weight: Tensor, bits: int) -> Rounding:
    """Returns what rounds a column to 2^bits levels from each row's least to its greatest weight.

    0 is one of the levels.

    Args:
        weight: (out, in).
        bits: at least 2.
    """
    levels = 2**bits - 1
    low = weight.amin(dim=1).clamp(max=0)
    step = ((weight.amax(dim=1).clamp(min=0) - low) / levels).clamp(min=torch.finfo().tiny)
    zero = (-low / step).round()
    return lambda column: ((column / step).round() + zero).clamp(0, levels).sub(zero).mul(step)
