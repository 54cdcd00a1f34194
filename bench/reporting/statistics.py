"""Paired tests of methods over seeds × items, for all pairs of a column at once.

Every method is scored on the same items with the same seeds, so seeds and items are crossed and
both are samples: another seed and another test item would give another difference. The squared
half-width of an interval is therefore the sum of two: that of the seeds' mean differences (t with
S − 1 degrees of freedom, in which noise of seed × item already is) and that of the items' variance
component (t with n − 1). Adding half-widths instead of variances gives few seeds the weight that
they deserve (Howe 1974, JASA 69: 112–117); the components are those of a two-way layout.

No bootstrap, because on few seeds it resamples a variance that two degrees of freedom know badly.
False separations at 5 % (`python -m tests.benchmarks.simulate_statistics`: 500 items, 2,000 pairs
of equal methods for each of eight mixtures of noise; the lowest and the highest rate):

| | 3 seeds | 5 seeds |
|---|---|---|
| this | 2.9 to 4.9 % | 3.7 to 4.8 % |
| bootstrap of seeds, then items | 1.7 to 24.9 % | 1.3 to 37.0 % |
| t over items, seeds averaged | 4.6 to 74.0 % | 4.8 to 71.5 % |
| t over seeds alone | 4.2 to 93.2 % | 4.0 to 93.3 % |

Of columns of six equal methods, 1.0 to 4.3 % have any rank but 1–6 (1,000 each, the same mixtures).

The price is power, which is the seeds' noise to give: of two methods 2 points apart, 5 seeds × 500
items find 90 % where one method's seeds differ by 0.7 points (standard deviation), 79 % by 0.9,
61 % by 1.1 and 19 % by 2.5; 3 seeds find 44, 33, 26 and 8 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

MIN_SEEDS = 3
"""Seeds below which nothing is tested and nothing ranked."""

ALPHA = 0.05

_LEVELS = np.logspace(-12, 0, 4001)
"""p-values that can be returned: 0.7 % apart, always rounded up."""


@dataclass(frozen=True)
class Pairwise:
    """Differences of all pairs, row minus column: (methods, methods) each.

    Attributes:
        difference: of the means over seeds and items.
        half: half-width of its 95 % interval.
        p: two-sided; NaN where there is no noise to hold it against.
    """

    difference: Floats
    half: Floats
    p: Floats


def pairwise(x: Floats) -> Pairwise:
    """Tests every pair of methods.

    Args:
        x: (methods, seeds, items), one outcome each; one item stands for seeds alone.

    Raises:
        ValueError: fewer than two seeds.
    """
    _, seeds, items = x.shape
    if seeds < 2:
        raise ValueError("a test needs two seeds at least")
    noise = (1e-13 * np.abs(x).max()) ** 2  # a variance below this is rounding
    x = x - x.mean(axis=0)  # what methods share cancels in every pair; smaller numbers, less error
    means = x.mean(axis=(1, 2))
    difference = means[:, None] - means[None, :]
    per_seed = _distances(x.mean(axis=2) - means[:, None])
    by_seed = per_seed / (seeds - 1) / seeds
    by_item = np.zeros_like(by_seed)
    if items > 1:
        per_item = _distances(x.mean(axis=1) - means[:, None])
        total = _distances((x - means[:, None, None]).reshape(len(x), -1))
        rest = np.maximum(total - items * per_seed - seeds * per_item, 0.0)
        within = rest / ((seeds - 1) * (items - 1))
        by_item = np.maximum(per_item / (items - 1) - within / seeds, 0.0) / items
    at = int(np.searchsorted(_LEVELS, ALPHA))
    t_seed, t_item = _quantiles(seeds - 1), _quantiles(max(items - 1, 1))
    by_seed[by_seed < noise], by_item[by_item < noise] = 0.0, 0.0
    half = np.sqrt(by_seed * t_seed[at] + by_item * t_item[at])
    p = _p_values(difference, by_seed, by_item, t_seed, t_item)
    if items > 1:
        # n identical differences are no stronger evidence than n equal coin flips.
        p = np.maximum(p, 0.5 ** min(items - 1, 1000))
    else:
        p[(by_seed == 0) & (difference != 0)] = np.nan
    p[difference == 0] = 1.0
    return Pairwise(difference, half, p)


def holm(p: Floats) -> Floats:
    """Adjusts by Holm's steps a family of p-values: (n,) → (n,)."""
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def rank_ranges(means: Floats, p: Floats) -> list[tuple[int, int]]:
    """Returns the ranks that each method may have, from 1, highest mean first.

    A method is behind those that the test finds better and ahead of those that it finds worse; the
    rest may be on either side. With Holm's adjustment over all pairs, all ranges hold at once with
    95 % (Mogstad et al. 2024, Review of Economic Studies 91: 476–518). NaN tells nothing.

    Args:
        means: (methods,).
        p: (methods, methods), unadjusted.
    """
    n = len(means)
    upper = np.triu_indices(n, 1)
    adjusted = np.ones((n, n))
    adjusted[upper] = holm(np.nan_to_num(p[upper], nan=1.0))
    better = (np.minimum(adjusted, adjusted.T) < ALPHA) & (means[:, None] > means[None, :])
    return [(int(b) + 1, n - int(w)) for b, w in zip(better.sum(0), better.sum(1), strict=True)]


def _distances(rows: Floats) -> Floats:
    """Returns squared Euclidean distances of all pairs of rows: (n, k) → (n, n)."""
    gram = rows @ rows.T
    own = np.diag(gram)
    scale = own[:, None] + own[None, :]
    found = scale - 2 * gram
    found[found <= 1e-12 * scale] = 0.0  # rounding of equal rows is no variance
    return found


@cache
def _quantiles(df: int) -> Floats:
    """Returns squares of two-sided Student quantiles at `_LEVELS`."""
    return np.asarray(stats.t.isf(_LEVELS / 2, df), dtype=np.float64) ** 2


def _p_values(
    difference: Floats, by_seed: Floats, by_item: Floats, t_seed: Floats, t_item: Floats
) -> Floats:
    """Returns the smallest level whose interval leaves out 0, by bisection over `_LEVELS`."""
    low = np.zeros(difference.shape, dtype=int)
    high = np.full(difference.shape, len(_LEVELS) - 1)
    square = difference**2
    while (high - low > 1).any():
        middle = (low + high) // 2
        covers = by_seed * t_seed[middle] + by_item * t_item[middle] >= square
        low, high = np.where(covers, middle, low), np.where(covers, high, middle)
    found: Floats = _LEVELS[high]
    return found
