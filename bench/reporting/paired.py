"""Records → what `bench.reporting.statistics` tests: the same items under the same seeds.

How a score follows from its items is read off the records. A score that is its items' mean, or the
exponential of it (perplexity), is tested over seeds × items, perplexity by the ratio. For accuracy
the items are 0 and 1. F1, Matthews, Pearson, BLEU and means over sets are no means of items; their
records hold jackknife values (`tasks.metrics.jackknife`), whose mean is the score too. A record
without such items is tested over seeds alone, which says nothing of other test items.

False separations at 5 % of two equal methods on such metrics
(`python -m tests.benchmarks.simulate_metrics`: the lowest and the highest of five mixtures of noise
and of 300 and 1,000 items; 1,000 draws each, so 0.7 points of standard error):

| | 3 seeds, jackknife | 3 seeds alone | 5 seeds, jackknife | 5 seeds alone |
|---|---|---|---|---|
| F1 | 2.1 to 6.4 % | 4.8 to 9.3 % | 3.0 to 4.7 % | 4.4 to 20.8 % |
| Matthews | 2.1 to 6.5 % | 4.5 to 9.0 % | 3.0 to 4.9 % | 4.6 to 20.6 % |
| Spearman | 1.6 to 5.4 % | 5.0 to 16.5 % | 2.3 to 6.3 % | 5.6 to 33.9 % |
| BLEU-2 | 1.9 to 6.4 % | 4.9 to 16.2 % | 3.0 to 6.0 % | 4.1 to 33.9 % |

In 4,000 other draws the highest cell of each metric has 4.0, 4.2, 4.6 and 4.7 %, so the excess in
the table is chance. Where no seed moves anything, seeds alone cannot be tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.core.collapse import collapsed
from bench.core.record import Record, verified
from bench.core.record_parts import ScoresPart
from bench.planning import registry
from bench.reporting.statistics import MIN_SEEDS, Floats, adjusted, pairwise, rank_ranges

Basis = Literal["mean", "log", "seeds"]
"""How a score follows from its items: mean, exponential of the mean, or not at all."""

Block = tuple[int, str, int, str]
"""What two records must have in common to be a pair: seed, the data's hash, items scored, and the
arithmetic of scoring (`bench.weights.precision.for_scoring`), which alone shifts a perplexity."""

_ROUNDING = 1e-5
"""Records hold six digits of every item and score, so a mean is known to this share of the largest
item."""


@dataclass(frozen=True)
class Test:
    """A paired comparison of two rows, a against b.

    Attributes:
        effect: mean difference a − b, or the ratio a / b where `ratio`; NaN without common seeds.
        low: lower end of its 95 % interval; NaN where not tested.
        high: upper end.
        p: two-sided, before any adjustment; NaN where not tested.
        ratio: whether the effect is a ratio (perplexity).
        seeds: common ones.
        items: common ones that were tested over; 0 for seeds alone.
        reason: why there is no test; empty where there is one.
    """

    effect: float
    low: float
    high: float
    p: float
    ratio: bool
    seeds: int
    items: int
    reason: str = ""


def compare(
    a: Sequence[Record], b: Sequence[Record], beside: Iterable[Sequence[Record]] = ()
) -> Test:
    """Tests the records of one method against those of another on their common seeds.

    Args:
        a: of one row.
        b: of another.
        beside: the other rows of their column. Those that have these seeds lend their variance, as
            in `all_pairs`.
    """
    blocks = sorted(set(_blocks(a)) & set(_blocks(b)))
    nan = float("nan")
    if not blocks:
        common = _seeds(a) & _seeds(b)
        reason = "scored on other data or in other arithmetic" if common else "no seed in common"
        return Test(nan, nan, nan, nan, False, 0, 0, reason)
    lenders = (
        row for row in beside if all(map(_testable, row)) and _blocks(row).keys() >= {*blocks}
    )
    rows = [a, b, *lenders]
    basis, x = _outcomes(rows, blocks)
    ratio = basis == "log"
    means = x.mean(axis=(1, 2))
    effect = float(means[0] - means[1])
    shown = math.exp(effect) if ratio else effect
    items = 0 if basis == "seeds" else x.shape[2]
    if len(blocks) < MIN_SEEDS:
        reason = f"{len(blocks)} of {MIN_SEEDS} seeds in common"
        return Test(shown, nan, nan, nan, ratio, len(blocks), items, reason)
    found = pairwise(x, _steady(rows))
    p, half = float(found.p[0, 1]), float(found.half()[0, 1])
    if math.isnan(p):
        reason = "no seed moves the scores, and no items give them"
        return Test(shown, nan, nan, nan, ratio, len(blocks), items, reason)
    low, high = effect - half, effect + half
    if ratio:
        low, high = math.exp(low), math.exp(high)
    return Test(shown, low, high, p, ratio, len(blocks), items)


@dataclass(frozen=True)
class AllPairs:
    """The tests of all pairs of a column's rows, which hold at once with 95 %.

    Matrices are (rows, rows), row minus column, and NaN for rows that are not tested.

    Attributes:
        places: first and last rank that each row may have; None where it is not tested.
        basis: what was tested over.
        seeds: common ones.
        effect: mean differences, or ratios where the basis is `log`.
        low: lower ends of their 95 % intervals.
        high: upper ends.
        p: two-sided, adjusted over all pairs.
    """

    places: list[tuple[int, int] | None]
    basis: Basis
    seeds: int
    effect: Floats
    low: Floats
    high: Floats
    p: Floats


def all_pairs(rows: Sequence[Sequence[Record]]) -> AllPairs:
    """Tests all rows of a column against each other.

    All are tested on the same seeds: those that most rows have. A row without them, or without
    `MIN_SEEDS` of them, is not tested, and neither is one that is alone, unverified or stale. Rows
    with collapsed runs lend the others no variance.
    """
    blocks = [frozenset(_blocks(row) if all(map(_testable, row)) else ()) for row in rows]
    candidates = {a & b for a in set(blocks) for b in set(blocks)}
    chosen = max(
        (c for c in candidates if len(c) >= MIN_SEEDS),
        key=lambda c: (sum(c <= found for found in blocks), len(c), sorted(c)),
        default=frozenset[Block](),
    )
    inside = [i for i, found in enumerate(blocks) if chosen and chosen <= found]
    places: list[tuple[int, int] | None] = [None] * len(rows)
    effect, low, high, p = (np.full((len(rows), len(rows)), np.nan) for _ in range(4))
    if len(inside) < 2:
        return AllPairs(places, "seeds", 0, effect, low, high, p)
    basis, x = _outcomes([rows[i] for i in inside], sorted(chosen))
    found, means = pairwise(x, _steady([rows[i] for i in inside])), x.mean(axis=(1, 2))
    at = np.ix_(inside, inside)
    p[at] = adjusted(found.p)
    rises = basis != "log" and _scores(rows[inside[0]][0]).higher_is_better
    for i, ends in zip(inside, rank_ranges(means if rises else -means, p[at]), strict=True):
        places[i] = ends
    half = found.half()
    matrices = (found.difference, found.difference - half, found.difference + half)
    effect[at], low[at], high[at] = (np.exp(m) if basis == "log" else m for m in matrices)
    return AllPairs(places, basis, len(chosen), effect, low, high, p)


def basis_of(scores: ScoresPart) -> Basis:
    """Tells how a record's score follows from its items."""
    if len(scores.items) != scores.n or not scores.n:
        return "seeds"
    items = items_of(scores)
    mean, largest = float(items.mean()), float(np.abs(items).max())
    if abs(mean - scores.value) <= _ROUNDING * largest:
        return "mean"
    if scores.value > 0 and abs(mean - math.log(scores.value)) <= _ROUNDING * (largest + 1):
        return "log"
    return "seeds"


def _testable(record: Record) -> bool:
    # What an earlier version did under its settings says nothing about the method of today.
    return verified(record) and not registry.is_stale(record)


def _steady(rows: Sequence[Sequence[Record]]) -> NDArray[np.bool_]:
    return np.array([not any(map(collapsed, row)) for row in rows])


def _outcomes(rows: Sequence[Sequence[Record]], blocks: Sequence[Block]) -> tuple[Basis, Floats]:
    """Returns (methods, seeds, items) of the rows on `blocks`; one item where a row has no more."""
    table = [[_scores(_blocks(row)[block]) for block in blocks] for row in rows]
    found = {basis_of(scores) for row in table for scores in row}
    sizes = {len(scores.items) for row in table for scores in row}
    if len(found) == 1 and "seeds" not in found and len(sizes) == 1:
        return found.pop(), np.array([[items_of(scores) for scores in row] for row in table])
    return "seeds", np.array([[[scores.value] for scores in row] for row in table])


def items_of(scores: ScoresPart) -> Floats:
    """Returns a record's outcome on each item."""
    if isinstance(scores.items, str):
        codes = np.frombuffer(scores.items.encode("ascii", "replace"), dtype=np.uint8)
        return codes.astype(np.float64) - ord("0")
    return np.asarray(scores.items, dtype=np.float64)


def _blocks(records: Sequence[Record]) -> dict[Block, Record]:
    return {
        (r.cell.seed, r.data.fingerprint, _scores(r).n, str(r.env.get("eval_dtype", "float32"))): r
        for r in records
        if r.data
    }


def _seeds(records: Sequence[Record]) -> set[int]:
    return {record.cell.seed for record in records}


def _scores(record: Record) -> ScoresPart:
    assert record.scores is not None  # of a done record
    return record.scores
