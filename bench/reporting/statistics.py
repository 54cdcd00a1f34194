"""Paired tests of methods over seeds × items, for all pairs of a column at once.

Every method is scored on the same items with the same seeds, so seeds and items are crossed and
both are samples: another seed and another test item would give another difference. The variance of
a difference D is the sum of two components of a two-way layout, that of the seeds, s²/S with
d = S − 1 degrees of freedom (noise of seed × item is in it), and that of the items, b:

    p = E[ 2Φ(−|D| / √(s̃²/S · f/u + b)) ],   u ~ χ² with f degrees of freedom

the Behrens–Fisher p-value. It is Student's where b = 0, and the normal's where s̃ = 0.

Two degrees of freedom know a variance badly. So rows lend each other theirs (Smyth 2004,
Statistical Applications in Genetics and Molecular Biology 3: 3): the s² of a column's pairs tell a
prior, s₀² with d₀ degrees of freedom, and

    s̃² = (d₀·s₀² + d·s²) / (d₀ + d),   f = d₀ + d

The more the pairs differ, the smaller is d₀. It is at most a quarter of the rows, and 2.5: few rows
cannot rule out one that is much louder than the others. A row that is not `steady` keeps its own s²
and d in all its pairs, and lends nothing.

p-values are adjusted by steps (Westfall and Young 1993): a difference counts where it exceeds what
the largest of all differences that are not yet found would reach by chance, for independent rows of
equal variance (Tukey's range). `bench/reporting/README.md` has what was compared, with the rates of
false separations and the power of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

MIN_SEEDS = 3
"""Seeds below which nothing is tested and nothing ranked."""

ALPHA = 0.05

_LENT, _MOST_LENT = 0.25, 2.5
"""Degrees of freedom that the prior has at most: those for each steady row, and in all."""

_NODES = 40
"""Points of the sum that stands for the expectation over u."""

_DRAWS = 10_000
"""Draws of the largest difference; adjusted p-values are right to 0.2 points at 5 %."""


@dataclass(frozen=True)
class Pairwise:
    """Differences of all pairs, row minus column: (methods, methods) each.

    Attributes:
        difference: of the means over seeds and items.
        by_seed: s̃²/S.
        by_item: b.
        freedom: f, degrees of freedom of `by_seed`.
        p: two-sided; NaN where there is no noise to hold it against.
    """

    difference: Floats
    by_seed: Floats
    by_item: Floats
    freedom: Floats
    p: Floats

    def half(self) -> Floats:
        """Returns half-widths of the 95 % intervals: the differences whose p would be 5 %."""
        low = stats.norm.isf(ALPHA / 2) * np.sqrt(self.by_seed + self.by_item)
        high = stats.t.isf(ALPHA / 2, np.maximum(self.freedom, 1)) * np.sqrt(
            self.by_seed + self.by_item
        )
        for _ in range(40):
            middle = (low + high) / 2
            wide = _p_values(middle, self.by_seed, self.by_item, self.freedom) < ALPHA
            low, high = np.where(wide, low, middle), np.where(wide, middle, high)
        found: Floats = high
        return found


def pairwise(x: Floats, steady: NDArray[np.bool_] | None = None) -> Pairwise:
    """Tests every pair of methods.

    Args:
        x: (methods, seeds, items), one outcome each; one item stands for seeds alone.
        steady: (methods,), rows that may lend each other their variances; None: all.

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
    by_item = np.zeros_like(per_seed)
    if items > 1:
        per_item = _distances(x.mean(axis=1) - means[:, None])
        total = _distances((x - means[:, None, None]).reshape(len(x), -1))
        rest = np.maximum(total - items * per_seed - seeds * per_item, 0.0)
        within = rest / ((seeds - 1) * (items - 1))
        by_item = np.maximum(per_item / (items - 1) - within / seeds, 0.0) / items
    variance = per_seed / (seeds - 1)
    variance[variance < noise], by_item[by_item < noise] = 0.0, 0.0
    lends = np.ones(len(x), dtype=bool) if steady is None else steady
    variance, freedom = moderated(variance, seeds, lends)
    by_seed = variance / seeds
    p = _p_values(difference, by_seed, by_item, freedom)
    if items > 1:
        # n identical differences are no stronger evidence than n equal coin flips.
        p = np.maximum(p, 0.5 ** min(items - 1, 1000))
    else:
        p[(by_seed == 0) & (difference != 0)] = np.nan
    p[difference == 0] = 1.0
    return Pairwise(difference, by_seed, by_item, freedom, p)


def moderated(variance: Floats, seeds: int, steady: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Returns s̃² and f of all pairs: (methods, methods) each.

    Args:
        variance: s² of the pairs' differences over seeds.
        seeds: S.
        steady: (methods,), whose pairs tell the prior and are moderated by it.
    """
    d = seeds - 1
    own, freedom = variance.copy(), np.full(variance.shape, float(d))
    lends = steady[:, None] & steady[None, :] & ~np.eye(len(variance), dtype=bool)
    told = prior(variance[np.triu(lends)], d)
    if told is not None:
        level, d0 = told[0], min(told[1], _LENT * float(steady.sum()), _MOST_LENT)
        own[lends] = (d0 * level + d * variance[lends]) / (d0 + d)
        freedom[lends] = d0 + d
    return own, freedom


def prior(variances: Floats, d: int) -> tuple[float, float] | None:
    """Fits s₀² and d₀ to variances with `d` degrees of freedom each, by moments of logarithms.

    log s² scatters by more than chance does, ψ′(d/2), where true variances differ; what is left is
    ψ′(d₀/2). Variances of 0 tell nothing. None: fewer than three pairs that differ, so no prior.
    """
    known = variances[variances > 0]
    if len(known) < 3:
        return None
    logs = np.log(known) - special.digamma(d / 2) + np.log(d / 2)
    centre, excess = float(logs.mean()), float(logs.var(ddof=1)) - special.polygamma(1, d / 2)
    if excess <= 0:
        return float(np.exp(centre)), np.inf
    d0 = 2 * _inverse_trigamma(excess)
    return float(np.exp(centre + special.digamma(d0 / 2) - np.log(d0 / 2))), d0


def holm(p: Floats) -> Floats:
    """Adjusts by Holm's steps a family of p-values: (n,) → (n,)."""
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def adjusted(p: Floats) -> Floats:
    """Adjusts the p-values of all pairs by steps: (methods, methods) → the same. NaN becomes 1.

    The smallest is the chance that independent normal rows have any pair so far apart, the next
    one that of any pair but the first, and so on. Draws are the same for the same number of rows.
    """
    n = len(p)
    upper = np.triu_indices(n, 1)
    raw = np.nan_to_num(p[upper], nan=1.0)
    limits = stats.norm.isf(raw / 2)
    draws = _normal(n)
    largest, flat = np.zeros(_DRAWS, dtype=np.float32), np.empty_like(raw)
    order = np.argsort(-raw, kind="stable")  # from the largest p on, so that maxima accumulate
    for k in order:
        np.maximum(largest, np.abs(draws[upper[0][k]] - draws[upper[1][k]]), out=largest)
        flat[k] = max(np.mean(largest >= limits[k]), raw[k])
    rising = order[::-1]
    flat[rising] = np.maximum.accumulate(flat[rising])
    found = np.ones((n, n))
    found[upper] = flat
    return np.asarray(np.minimum(found, found.T))


def rank_ranges(means: Floats, p: Floats) -> list[tuple[int, int]]:
    """Returns the ranks that each method may have, from 1, highest mean first.

    A method is behind those that the test finds better and ahead of those that it finds worse; the
    rest may be on either side. With p-values adjusted over all pairs, all ranges hold at once with
    95 % (Mogstad et al. 2024, Review of Economic Studies 91: 476–518).

    Args:
        means: (methods,).
        p: (methods, methods), adjusted.
    """
    better = (p < ALPHA) & (means[:, None] > means[None, :])
    n = len(means)
    return [(int(b) + 1, n - int(w)) for b, w in zip(better.sum(0), better.sum(1), strict=True)]


def _distances(rows: Floats) -> Floats:
    """Returns squared Euclidean distances of all pairs of rows: (n, k) → (n, n)."""
    gram = rows @ rows.T
    own = np.diag(gram)
    scale = own[:, None] + own[None, :]
    found = scale - 2 * gram
    found[found <= 1e-12 * scale] = 0.0  # rounding of equal rows is no variance
    return found


def _p_values(difference: Floats, by_seed: Floats, by_item: Floats, freedom: Floats) -> Floats:
    """Returns the expectation at the head of this file for each pair."""
    p = np.ones(difference.shape)
    for f in np.unique(freedom):
        at = freedom == f
        ratio, weight = _chi_square(float(f))
        variance = by_seed[at][:, None] * ratio + by_item[at][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            tails = special.erfc(np.abs(difference[at])[:, None] / np.sqrt(2 * variance))
        p[at] = np.nan_to_num(tails, nan=1.0) @ weight
    return p


@cache
def _chi_square(f: float) -> tuple[Floats, Floats]:
    """Returns f/u at Gauss–Legendre nodes of log u, u ~ χ² with f degrees of freedom; weights."""
    low, high = np.log(stats.chi2.ppf(1e-12, f)), np.log(stats.chi2.isf(1e-12, f))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    u = np.exp((high - low) / 2 * nodes + (high + low) / 2)
    weights = weights * u * stats.chi2.pdf(u, f)
    return f / u, weights / weights.sum()


@cache
def _normal(n: int) -> NDArray[np.float32]:
    """Returns the draws for `n` rows, (n, draws); a difference of two has variance 1."""
    drawn = np.random.default_rng(0).standard_normal((n, _DRAWS), dtype=np.float32)
    return drawn / np.float32(np.sqrt(2))


def _inverse_trigamma(value: float) -> float:
    """Solves ψ′(y) = value for y by Newton's steps on 1/ψ′, which is convex (Smyth 2004)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        found = special.polygamma(1, y)
        step = found * (1 - found / value) / special.polygamma(2, y)
        y += step
        if -step / y < 1e-8:
            break
    return float(y)
