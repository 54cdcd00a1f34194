"""Numbers that others printed (`published.csv`), each beside the closest cell of this suite.

One metric a row: the suite's name of the method (empty where it has none), the printed label,
model, task, level, metric, value as a fraction (perplexity as it is), what the recipe adds to the
suite's default, setting, source, and confidence: H read in the source, M from a file without a
caption, L from memory.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from scipy import stats

from bench.core.errors import BenchError
from bench.core.record import Record
from bench.core.tables import escape, markdown
from bench.reporting.rows import Row, name, ordered
from bench.reporting.statistics import ALPHA, MIN_SEEDS

DATA = Path(__file__).with_name("published.csv")

FULL = "full"
"""The budget that comes close to a paper's."""

Verdict = Literal["reproduced", "not reproduced", "undecided", "not tested here"]
NOT: Verdict = "not reproduced"
UNTESTED: Verdict = "not tested here"


class Finding(NamedTuple):
    """What was found of a claim: the number here, its interval, where, and the verdict."""

    here: str
    interval: str
    where: str
    verdict: Verdict


_HEADER = (
    *("label", "model", "task", "level", "metric", "printed", "here", "95 %"),
    *("where, what differs", "verdict", "source"),
)


@dataclass(frozen=True)
class Published:
    """A row of the file."""

    method: str
    label: str
    model: str
    task: str
    pattern: str
    sparsity: float | None
    metric: str
    value: float
    recipe: str
    setting: str
    source: str
    confidence: Literal["H", "M", "L"]


def read(path: Path = DATA) -> list[Published]:
    """Reads all rows.

    Raises:
        BenchError: one has a field too many, too few, or no number.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = []
        for line, fields in enumerate(csv.DictReader(file), start=2):
            try:
                level = float(fields.pop("sparsity")) if fields["sparsity"] else None
                if level is None:
                    fields.pop("sparsity")
                value = float(fields.pop("value"))
                rows.append(Published(sparsity=level, value=value, **fields))  # type: ignore[arg-type]
            except (KeyError, TypeError, ValueError) as error:
                raise BenchError(f"{path.name}, line {line}: {error}") from None
    return rows


def section(records: Sequence[Record]) -> str:
    """Returns the rows that have a cell beside them, and how many have none."""
    tasks: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        tasks[record.cell.task].append(record)
    rows_of = {task: list(_rows(inside)) for task, inside in tasks.items()}
    rows, without = [], 0
    for printed in read():
        found = closest(printed, rows_of)
        if found is None:
            without += 1
            continue
        level = "" if printed.sparsity is None else f"{printed.sparsity:g}"
        texts = (printed.label, printed.model, printed.task, f"{printed.pattern} {level}".strip())
        finding = _finding(printed, found)
        numbers = (_number(printed.value, printed.metric), finding.here, finding.interval or "–")
        rows.append(
            [
                *map(escape, (*texts, printed.metric, *numbers, finding.where)),
                finding.verdict,
                escape(f"{printed.source} ({printed.confidence})"),
            ]
        )
    note = f"{without} published numbers have no cell here that is of their task and method."
    return f"{markdown(_HEADER, rows)}\n\n{note}" if rows else note


def closest(printed: Published, rows_of: dict[str, list[Row]]) -> Row | None:
    """Returns the suite's row of the same task, method and metric that differs least."""
    same = []
    for task, rows in rows_of.items():
        # `wikitext-c4` differs from `wikitext` in what is calibrated on, not in what is scored.
        if task.partition("-c4")[0] != printed.task.partition("-c4")[0]:
            continue
        for row in rows:
            method, checked = row[0][0], row[0][4]
            if method == printed.method and checked and _scores(row[1], printed.metric):
                same.append(row)
    return min(
        same, key=lambda row: (len(_differs(printed, row)), _away(printed, row)), default=None
    )


def _rows(records: Sequence[Record]) -> Iterator[Row]:
    """Rows of one task; a row has one model and one budget."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.cell.model, record.cell.budget].append(record)
    for inside in groups.values():
        yield from ordered(inside)


def _finding(printed: Published, row: Row) -> Finding:
    values = _scores(row[1], printed.metric)
    mean = statistics.fmean(values)
    differs = _differs(printed, row)
    if len(values) < MIN_SEEDS:
        differs.append(f"{len(values)} of {MIN_SEEDS} seeds")
    where = "; ".join([" ".join(name(row[0], str)[:2]), *differs])
    here = _number(mean, printed.metric)
    if len(values) < MIN_SEEDS:
        return Finding(here, "", where, UNTESTED)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.isf(ALPHA / 2, len(values) - 1)) * spread
    interval = f"{_number(mean - half, printed.metric)} … {_number(mean + half, printed.metric)}"
    inside = abs(mean - printed.value) <= half
    verdict: Verdict = UNTESTED if differs else "reproduced" if inside else NOT
    return Finding(here, interval, where, verdict)


def _differs(printed: Published, row: Row) -> list[str]:
    """Returns in what a row differs from what was published."""
    cell = row[1][0].cell
    found = [] if cell.model == printed.model else [f"model {cell.model}"]
    if cell.task != printed.task:
        found.append(f"task {cell.task}")
    if cell.pattern.text != printed.pattern or _away(printed, row) > 0.005:
        found.append("another level")
    if cell.budget != FULL:
        found.append(f"budget {cell.budget}")
    if cell.overrides:
        found.append("parameters")
    return found + ([f"paper: {printed.recipe}"] if printed.recipe else [])


def _away(printed: Published, row: Row) -> float:
    sparsity: float = row[0][2]
    return abs(sparsity - (printed.sparsity or 0.0))


def _scores(records: Sequence[Record], metric: str) -> list[float]:
    """Returns the metric of every record; nothing where one lacks it."""
    found = [r.scores.all.get(metric) for r in records if r.scores]
    known = [value for value in found if value is not None]
    return known if len(known) == len(records) else []


def _number(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.2f}"
