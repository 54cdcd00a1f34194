"""Scores → keep masks with exactly the right number of zeros (methods/README.md, counts).

Everywhere: `k = floor(n·s + 1e-6)` elements are pruned, the smallest scores first and, among equal
scores, the smallest flat index first, as a stable ascending sort would have it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.api import BenchError, Pattern

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_SAMPLE = 8192


def pruned_count(n: int, sparsity: float) -> int:
    """Returns how many of `n` elements a sparsity prunes; 1e-6 forgives 0.29·100 = 28.999…96."""
    return math.floor(n * sparsity + 1e-6)


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """Returns the k-th smallest (1-based) of a flat float tensor, as a 0-d tensor.

    On CPU by Floyd and Rivest's idea (CACM 18:3, 1975): a sample brackets the answer, one pass
    counts what lies below the bracket, and only the few values inside are searched. Exact: where
    the bracket misses, everything is searched. NumPy's passes, because torch writes booleans ten
    times slower than it reads floats.
    """
    n = values.numel()
    if values.device.type != "cpu" or values.dtype != torch.float32 or n < 4 * _SAMPLE:
        return values.kthvalue(k).values
    array = values.detach().numpy()
    # An odd stride visits all columns of a matrix whose width is a power of two.
    sample = array[:: (n // _SAMPLE) | 1]
    m = len(sample)
    centre, margin = k / n * m, 4.0 * math.sqrt(k / n * (1 - k / n) * m) + 2.0
    low, high = max(int(centre - margin), 0), min(math.ceil(centre + margin), m - 1)
    bounds = np.partition(sample, (low, high))
    reaches = array >= (bounds[low] if low > 0 else -np.inf)
    below = n - np.count_nonzero(reaches)
    inside = np.less_equal(array, bounds[high] if high < m - 1 else np.inf)
    band = _where(array, np.logical_and(reaches, inside, out=inside))
    if not below < k <= below + len(band):
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(band, k - below - 1)[k - below - 1 :][:1])[0]


def _where(array: FloatArray, chosen: BoolArray) -> FloatArray:
    """Returns `array[chosen]`; where few are chosen it is faster to look at eight flags at once."""
    eights = len(array) // 8 * 8
    some = np.flatnonzero(chosen[:eights].view(np.uint64) != 0)
    near = array[:eights].reshape(-1, 8).take(some, axis=0).ravel()
    flags = chosen[:eights].reshape(-1, 8).take(some, axis=0).ravel()
    return np.concatenate([near[np.flatnonzero(flags)], array[eights:][chosen[eights:]]])


def keep_largest(scores: Tensor, k: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """Returns a keep mask that prunes exactly the `k` smallest of a pool.

    Args:
        scores: any shape, float; the whole tensor is one pool.
        k: how many to prune, 0 to n.
        dtype: of the mask; a float mask is cheaper to make and to multiply with than a bool one.

    Returns:
        A tensor of the same shape, true (or 1) = keep.
    """
    flat = scores.detach().reshape(-1)
    n = flat.numel()
    if k <= 0:
        return torch.ones_like(scores, dtype=dtype)
    if k >= n:
        return torch.zeros_like(scores, dtype=dtype)
    if scores.is_meta:
        return torch.empty_like(scores, dtype=dtype)  # there is nothing to choose by
    threshold = kth_smallest(flat, k)
    keep = torch.gt(flat, threshold, out=torch.empty_like(flat, dtype=dtype))
    # float32 adds up ones exactly below 2²⁴.
    exact = dtype == torch.float32 and n < 2**24
    spare = n - k - (keep.sum() if exact else torch.count_nonzero(keep))
    if flat.device.type != "cpu" or spare > 0:
        # Ties at the threshold: the last `spare` of them are kept. Without a branch on GPUs,
        # where reading `spare` would stall the stream.
        tied = flat == threshold
        from_end = tied.flip(0).cumsum(0).flip(0)
        keep = keep.logical_or_(tied & (from_end <= spare))
    return keep.view(scores.shape)


def keep_largest_per_row(scores: Tensor, k: int) -> Tensor:
    """Returns what `keep_largest` does, with every row of `scores` (rows, n) a pool of its own."""
    return keep_spread(scores, k * scores.shape[0])


def keep_spread(scores: Tensor, total: int) -> Tensor:
    """Returns a keep mask that prunes exactly `total`, as many of the smallest from each row.

    Where `total` is no multiple of the rows, row r prunes ⌊(r+1)·total/rows⌋ − ⌊r·total/rows⌋, so
    rows differ by one and the matrix is exact.

    Args:
        scores: (rows, n).
        total: how many to prune, 0 to rows·n.
    """
    scores = scores.detach()
    rows, width = scores.shape
    base, more = divmod(total, rows)
    edges = torch.arange(rows + 1, device=scores.device) * total // rows
    counts = edges.diff()[:, None]
    wanted = [base, base + 1] if more else [base]
    cuts = _row_statistics(scores, wanted)
    cut = torch.where(counts > base, cuts[-1], cuts[0])
    keep = scores > cut
    spare = width - counts - keep.sum(dim=1, keepdim=True)
    # Ties at the cut: the last `spare` of them are kept. Only a CPU may look which rows have any.
    tied_rows: Tensor | slice = slice(None)
    if scores.device.type == "cpu":
        some = spare[:, 0].nonzero()[:, 0]
        if not len(some):
            return keep
        tied_rows = some
    tied = scores[tied_rows] == cut[tied_rows]
    from_end = tied.flip(1).cumsum(1).flip(1)
    keep[tied_rows] |= tied & (from_end <= spare[tied_rows])
    return keep


def _row_statistics(scores: Tensor, wanted: list[int]) -> list[Tensor]:
    """Returns the k-th smallest (1-based) of every row, (rows, 1), for each k; −inf for k = 0."""
    ks = [k for k in wanted if k > 0]
    none = scores.new_full((scores.shape[0], 1), -math.inf)
    if not ks:
        return [none]
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # A vectorised selection, an order of magnitude faster than sorting.
        parted = torch.from_numpy(np.partition(scores.numpy(), [k - 1 for k in ks], axis=1))
        found = [parted[:, k - 1 : k] for k in ks]
    else:
        found = [scores.kthvalue(k, dim=1, keepdim=True).values for k in ks]
    return [none] * (len(wanted) - len(ks)) + found


def keep_n_largest(parts: Tensor, n: int) -> Tensor:
    """Returns the keep mask of the `n` largest along the first dimension of `parts` (m, …).

    Compares all pairs: m·(m−1)/2 passes over 1/m of the elements, no sort. Among equals the
    last are kept.
    """
    m = len(parts)
    # rank = how many of the others go before: at first all that follow, and none that precede.
    rank = torch.arange(m - 1, -1, -1, dtype=torch.uint8, device=parts.device)
    rank = rank.view(-1, *[1] * (parts.ndim - 1)).repeat(1, *parts.shape[1:])
    values, ranks = parts.unbind(), rank.unbind()
    for a in range(m):
        for b in range(a + 1, m):
            later = (values[a] <= values[b]).view(torch.uint8)
            ranks[b].add_(later)
            ranks[a].sub_(later)
    return rank >= m - n


def keep_n_m(scores: Tensor, n: int, m: int, name: str = "the matrix") -> Tensor:
    """Returns the keep mask with the `n` largest of every `m` consecutive inputs of a row.

    Args:
        scores: (out, in).
        n: kept in a group.
        m: size of a group.
        name: for the message.

    Raises:
        BenchError: the width is not divisible by `m`.
    """
    rows = scores.shape[0]
    groups = groups_of(scores.shape[1], n, m, name)
    parts = scores.detach().reshape(rows * groups, m).t().contiguous()
    return keep_n_largest(parts, n).t().reshape(scores.shape)


def groups_of(width: int, n: int, m: int, name: str) -> int:
    """Returns the groups of `m` in `width` inputs.

    Raises:
        BenchError: the width is not divisible by `m`.
    """
    if width % m:
        raise BenchError(f"pattern {n}:{m}: {name} has {width} inputs, not a multiple of {m}")
    return width // m


def keep_n_m_partly(scores: Tensor, n: int, m: int, fraction: float) -> Tensor:
    """Returns a keep mask with a fraction of the groups of `m` made N:M and the rest left dense.

    Those that lose most stay dense longest: the order is the sum of the scores that the group
    would lose (methods/README.md, gmp).

    Args:
        scores: (out, in), not negative.
        n: kept in a pruned group.
        m: size of a group.
        fraction: of the groups that are pruned; 1 is `keep_n_m`.
    """
    keep = keep_n_m(scores, n, m).view(-1, m)
    lost = scores.detach().reshape(-1, m).masked_fill(keep, 0.0).sum(dim=1)
    dense = keep_largest(lost, pruned_count(lost.numel(), fraction))
    return (keep | dense[:, None]).view(scores.shape)


def keep_largest_global(
    scores: list[Tensor], sparsity: float, dtype: torch.dtype = torch.bool
) -> list[Tensor]:
    """Returns keep masks from one pool over all matrices."""
    flat = torch.cat([s.detach().reshape(-1) for s in scores])
    keep = keep_largest(flat, pruned_count(flat.numel(), sparsity), dtype)
    sizes = [s.numel() for s in scores]
    return [part.view(s.shape) for part, s in zip(keep.split(sizes), scores, strict=True)]


def keep_masks(
    scores: dict[str, Tensor], pattern: Pattern, sparsity: float, pool: str = "layer"
) -> dict[str, Tensor]:
    """Returns keep masks of a pattern for named score matrices, each (out, in).

    Args:
        scores: larger is more worth keeping.
        pattern: `unstructured` or N:M.
        sparsity: fraction to prune; N:M fixes it at 1 − N/M, any other is refused.
        pool: where unstructured scores compete: `layer`, `row` or `global`.

    Raises:
        BenchError: an impossible pattern, sparsity, pool or width.
    """
    if sparsity == 0:
        return {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
    if pattern.n_m:
        return {name: keep_n_m(s, *pattern.n_m, name=name) for name, s in scores.items()}
    if pool == "layer":
        return {n: keep_largest(s, pruned_count(s.numel(), sparsity)) for n, s in scores.items()}
    if pool == "row":
        return {n: keep_spread(s, pruned_count(s.numel(), sparsity)) for n, s in scores.items()}
    if pool == "global":
        masks = keep_largest_global(list(scores.values()), sparsity)
        return dict(zip(scores, masks, strict=True))
    raise BenchError(f"unknown pool {pool!r}: layer, row or global")
