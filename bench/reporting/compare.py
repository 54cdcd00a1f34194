"""`sparsebench compare A B`: where one method beats another, what both cost, what is missing.

Records in, Markdown out. Only cells that differ in nothing but the method are compared; the dense
reference has no level and is held against every one.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.core.cell import REFERENCE
from bench.core.errors import BenchError
from bench.core.overrides import Overrides
from bench.core.pattern import DENSE, Pattern
from bench.core.record import Record, number
from bench.core.tables import escape, human, markdown
from bench.core.tuning import NO_CHOICES, Choices
from bench.reporting import cost_tables, paired
from bench.reporting.boards import stands_apart
from bench.reporting.rows import higher, label_of, mark_of, mean
from bench.reporting.statistics import ALPHA, MIN_SEEDS, holm

Condition = tuple[str, str, str, Pattern, float, Overrides]
"""Task, model, budget, pattern, sparsity, overrides that are not the method's own."""

COMPARISON_LEGEND = f"""\
Scores are means over seeds, × 100 where higher is better. **a − b**: paired difference in points,
a / b for perplexity, with its 95 % interval. **p**: two-sided, by Holm over the table's tests.
**over**: a test over seeds × items holds for other seeds and other items. A test over seeds alone,
where records hold no items that give the score, holds for other seeds on these items. Nothing is
tested with fewer than {MIN_SEEDS} common seeds.
"""

_COUNTS = {
    "trainable": "params.trainable.body",
    "stored elements": "params.stored",
    "stored bytes": "bytes.stored",
    "MACs effective": "macs.effective",
    "MACs realizable": "macs.realizable",
    "MACs train": "macs.train",
}


@dataclass(frozen=True)
class Line:
    """One comparison: the records of both at one point, on common seeds, and what the test says.

    Attributes:
        p: adjusted over all lines; NaN where not tested.
        winner: 0 for a, 1 for b, None where they were not told apart.
    """

    point: Condition
    a: list[Record]
    b: list[Record]
    test: paired.Test
    p: float
    winner: int | None


def lines(
    records: Iterable[Record], a: str, b: str, choices: Choices = NO_CHOICES
) -> tuple[list[Line], dict[Condition, set[int]]]:
    """Returns the comparisons of two methods, and the conditions that one (0, 1) of them lacks.

    Args:
        records: done ones.
        a: a method as tables name it: `pst`, or with its parameters, `pst lr=0.001`.
        b: another.
        choices: choices of settings, from which some cells may come.

    Raises:
        BenchError: a method that has no records.
    """
    found = list(records)
    rows = _rows(found, choices)
    for wanted in (a, b):
        if wanted not in rows:
            near = difflib.get_close_matches(wanted, sorted(rows), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {_listed(rows)}"
            raise BenchError(f"no records of {wanted!r}: {hint}")
    if a == b:
        raise BenchError(f"{a!r} is compared with itself")
    sides = [rows[wanted] for wanted in (a, b)]
    points = set().union(*(side for s, side in zip((a, b), sides, strict=True) if s != REFERENCE))
    drafts, missing = [], {}
    for point in sorted(points, key=str):
        first, second = (_at(side, point, s) for side, s in zip(sides, (a, b), strict=True))
        if first and second:
            others = (side.get(point) for name, side in rows.items() if name not in (a, b))
            beside = [row for row in others if row and not stands_apart(row)]
            test = paired.compare(first, second, beside)
            if REFERENCE not in (a, b) and any(map(stands_apart, (first, second))):
                nan = math.nan
                test = replace(
                    test, low=nan, high=nan, p=nan, reason="another sparsity than asked for"
                )
            drafts.append((point, *_common(first, second), test))
        else:
            missing[point] = {i for i, inside in enumerate((first, second)) if not inside}
    p = np.array([test.p for *_, test in drafts], dtype=np.float64)
    tested = ~np.isnan(p)
    p[tested] = holm(p[tested])
    made = [
        Line(*draft, p=float(value), winner=_winner(draft[1], draft[3], float(value)))
        for draft, value in zip(drafts, p, strict=True)
    ]
    return made, missing


def report(records: Iterable[Record], a: str, b: str, choices: Choices = NO_CHOICES) -> str:
    """Returns the comparison as a Markdown page."""
    made, missing = lines(records, a, b, choices)
    parts = [f"# {escape(a)} against {escape(b)}", summary(made, len(missing), a, b)]
    if made:
        parts += ["## Scores", _scores(made, a, b)]
        parts += ["## Costs, a / b", _costs(made)]
    if missing:
        parts += ["## Missing", _missing(missing, a, b)]
    return "\n\n".join([*parts, COMPARISON_LEGEND.rstrip()])


def summary(made: Sequence[Line], missing: int, a: str, b: str) -> str:
    """Says in words what the tests found, and no more than that."""
    tested = [line for line in made if not math.isnan(line.p)]
    said = [f"{_many(len(made), 'comparison')} of a = {escape(a)} and b = {escape(b)}"]
    if missing:
        said[0] += f"; {_many(missing, 'more cell')} that only one of them has"
    if tested:
        alike = sum(line.winner is None for line in tested)
        for side, who in enumerate((a, b)):
            won = [line for line in tested if line.winner == side]
            where = f": {escape('; '.join(place(line.point) for line in won))}" if won else ""
            said.append(f"{escape(who)} is better in {len(won)} of {len(tested)} tested{where}")
        if alike:
            said.append(f"{alike} of {len(tested)} tested could not be told apart")
    if untested := len(made) - len(tested):
        reasons = sorted({line.test.reason for line in made if line.test.reason})
        said.append(f"{untested} not tested ({'; '.join(reasons)}): no claim is made of these")
    for side, who in enumerate((a, b)):
        if taken := sum(mark_of((line.a, line.b)[side][0]) == "published" for line in made):
            said.append(f"published records stand for {escape(who)} in {taken} of {len(made)}")
    return "\n".join(f"* {text}." for text in said)


def _rows(records: Iterable[Record], choices: Choices) -> dict[str, dict[Condition, list[Record]]]:
    """Returns the records of each method at each condition, by the method's name in tables."""
    found: dict[str, dict[Condition, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cell = record.cell
        shared = cell.overrides.shared
        point = (cell.task, cell.model, cell.budget, cell.pattern, cell.sparsity, shared)
        found[label_of(cell, choices)][point].append(record)
    return found


def _at(side: dict[Condition, list[Record]], point: Condition, wanted: str) -> list[Record]:
    """Returns the records of a condition; the reference's match at every level."""
    if wanted != REFERENCE:
        return side.get(point, [])
    task, model, budget, _, _, shared = point
    return side.get((task, model, budget, DENSE, 0.0, shared.of_budget), [])


def _common(a: list[Record], b: list[Record]) -> tuple[list[Record], list[Record]]:
    """Returns both on their common seeds, or unchanged where they have none."""
    seeds = {r.cell.seed for r in a} & {r.cell.seed for r in b}
    if not seeds:
        return a, b
    return [r for r in a if r.cell.seed in seeds], [r for r in b if r.cell.seed in seeds]


def _winner(a: Sequence[Record], test: paired.Test, p: float) -> int | None:
    if math.isnan(p) or p >= ALPHA:
        return None
    above = test.effect > (1 if test.ratio else 0)
    return 0 if above == higher(a) else 1


def _scores(made: Sequence[Line], a: str, b: str) -> str:
    header = ("cell", "metric", "seeds", "a", "b", "a − b", "95 %", "p", "over", "better")
    rows = []
    for line in made:
        first, test = line.a[0].scores, line.test
        assert first is not None
        unit = 1 if test.ratio else first.unit
        sign = "" if test.ratio else "+"
        tested = not math.isnan(line.p)
        better = "not told apart" if line.winner is None else (a, b)[line.winner]
        rows.append(
            [
                escape(place(line.point)),
                escape(first.metric),
                str(test.seeds),
                f"{first.unit * mean(line.a):.2f}",
                f"{first.unit * mean(line.b):.2f}",
                "–" if math.isnan(test.effect) else f"{unit * test.effect:{sign}.3g}",
                f"{unit * test.low:{sign}.3g} … {unit * test.high:{sign}.3g}" if tested else "–",
                _p(line.p) if tested else "–",
                _over(test),
                escape(better if tested else f"not tested: {test.reason}"),
            ]
        )
    return markdown(header, rows)


def _over(test: paired.Test) -> str:
    return f"seeds × {test.items} items" if test.items else "seeds alone"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _costs(made: Sequence[Line]) -> str:
    rows = []
    for line in made:
        cells = [escape(place(line.point))]
        for path in _COUNTS.values():
            cells.append(
                _ratio([number(r, path) for r in line.a], [number(r, path) for r in line.b])
            )
        rows.append([*cells, _seconds(line), _latency(line)])
    return markdown(("cell", *_COUNTS, "train s", "time of a pass"), rows)


def _ratio(a: Sequence[float | None], b: Sequence[float | None]) -> str:
    """Returns the ratio of means, both numbers where b is 0, a dash where one is absent."""
    known = [[v for v in side if v is not None] for side in (a, b)]
    if len(known[0]) < len(a) or len(known[1]) < len(b):
        return "–"
    above, below = map(statistics.fmean, known)
    return f"{above / below:.3g}" if below else f"{human(above)} : {human(below)}"


def _seconds(line: Line) -> str:
    """Returns the ratio of the seconds to the pruned model, where they may be compared."""
    if cost_tables.one_machine([*line.a, *line.b]) is None:
        return "other hardware"
    a, b = (
        [r.cost.train_s + r.cost.prune_s + r.cost.dense_s for r in side if r.cost]
        for side in (line.a, line.b)
    )
    return _ratio(a, b)


def _latency(line: Line) -> str:
    """Returns ratios of the time of a pass in the settings that both have, on one machine only.

    Each is relative to the dense model of its own run: what else the machine did cancels.
    """
    a, b = (
        {
            (s.hardware, s.dtype, s.batch, s.length): statistics.median(
                t.ms_p50 / t.dense_ms_p50
                for r in side
                for t in r.speed
                if (t.hardware, t.dtype, t.batch, t.length)
                == (s.hardware, s.dtype, s.batch, s.length)
            )
            for r in side
            for s in r.speed
        }
        for side in (line.a, line.b)
    )
    common = sorted(set(a) & set(b))
    if not common:
        return "other hardware" if a and b else "–"
    return ", ".join(f"{s[2]}×{s[3]}: {a[s] / b[s]:.2f}" for s in common if b[s])


def _missing(missing: dict[Condition, set[int]], a: str, b: str) -> str:
    who = {0: a, 1: b}
    return "\n".join(
        f"* {escape(place(point))}: no {escape(' and no '.join(who[i] for i in sorted(lacking)))}"
        for point, lacking in missing.items()
    )


def place(point: Condition) -> str:
    """Returns a condition in words, without what is default."""
    task, model, budget, pattern, sparsity, shared = point
    level = pattern.at(sparsity)
    extra = [] if budget == "default" else [f"budget {budget}"]
    return " ".join([task, model, level, *extra, *(f"{k}={v}" for k, v in shared.flat)])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
