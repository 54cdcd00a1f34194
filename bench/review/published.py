"""Published numbers of others (`published.csv`), each beside the closest cell of this suite.

A row of the file holds one metric: the suite's name of the method (empty where it has none), the
printed label, model, task, pattern, sparsity, metric, value as a fraction (perplexity unchanged),
what the recipe adds to the suite's default, setting, source, and confidence. Confidence H is read
in the source, M comes from a file without a caption, L from memory.
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
from bench.reporting.boards import counted, stands_apart
from bench.reporting.rows import Row, name, ordered
from bench.reporting.statistics import ALPHA, MIN_SEEDS

DATA = Path(__file__).with_name("published.csv")

FULL = "full"
"""Name of the budget that is close to those of papers."""

Verdict = Literal[
    "reproduced", "not reproduced", "undecided", "not tested here",
    "holds elsewhere", "fails elsewhere", "undecided elsewhere",
]  # fmt: skip
NOT: Verdict = "not reproduced"
UNTESTED: Verdict = "not tested here"


class Finding(NamedTuple):
    """The finding about a claim: our number, its 95 % interval, the cell, and the verdict."""

    here: str
    interval: str
    where: str
    verdict: Verdict


_HEADER = (
    *("label", "model", "task", "level", "metric", "printed", "here", "95 %"),
    *("where, what differs", "verdict", "source"),
)


@dataclass(frozen=True)
class PublishedNumber:
    """A row of the file. `value` and `sparsity` are fractions; a perplexity is unchanged."""

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


def read_published(path: Path = DATA) -> list[PublishedNumber]:
    """Reads all rows of the file.

    Raises:
        BenchError: a row has too many or too few fields, or a value is not a number.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = []
        for line, fields in enumerate(csv.DictReader(file), start=2):
            try:
                level = float(fields.pop("sparsity")) if fields["sparsity"] else None
                if level is None:
                    fields.pop("sparsity")
                value = float(fields.pop("value"))
                number = PublishedNumber(sparsity=level, value=value, **fields)  # type: ignore[arg-type]
                rows.append(number)
            except (KeyError, TypeError, ValueError) as error:
                raise BenchError(f"{path.name}, line {line}: {error}") from None
    return rows


def section(records: Sequence[Record]) -> str:
    """Returns a Markdown table of the published numbers with a comparable cell.

    A line below the table counts the numbers without such a cell.
    """
    tasks: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        tasks[record.cell.task].append(record)
    rows_of = {task: list(_rows(inside)) for task, inside in tasks.items()}
    rows, without = [], 0
    for printed in read_published():
        row = closest(printed, rows_of)
        if row is None:
            without += 1
            continue
        level = "" if printed.sparsity is None else f"{printed.sparsity:g}"
        texts = (printed.label, printed.model, printed.task, f"{printed.pattern} {level}".strip())
        finding = _finding(printed, row)
        numbers = (_number(printed.value, printed.metric), finding.here, finding.interval or "–")
        rows.append(
            [
                *map(escape, (*texts, printed.metric, *numbers, finding.where)),
                finding.verdict,
                escape(f"{printed.source} ({printed.confidence})"),
            ]
        )
    note = f"{without} published numbers have no cell here of their task, method and level."
    return f"{markdown(_HEADER, rows)}\n\n{note}" if rows else note


def closest(printed: PublishedNumber, rows_of: dict[str, list[Row]]) -> Row | None:
    """Returns the row of that task, method, level and metric that differs least, if any."""
    same = []
    for task, rows in rows_of.items():
        # `wikitext-c4` and `wikitext` differ in calibration data, not in scored data.
        if task.partition("-c4")[0] != printed.task.partition("-c4")[0]:
            continue
        for row in rows:
            known = row[0][4] != "unverified"
            if known and _same_level(printed, row) and _scores(row[1], printed.metric):
                same.append(row)
    return min(same, key=lambda row: len(_differs(printed, row)), default=None)


def _rows(records: Sequence[Record]) -> Iterator[Row]:
    """Yields the rows of one task; a row has one model and one budget."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.cell.model, record.cell.budget].append(record)
    for inside in groups.values():
        yield from ordered(inside)


def _finding(printed: PublishedNumber, row: Row) -> Finding:
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
    # Rows that do not vary are held against the printed digits.
    inside = abs(mean - printed.value) <= half or here == _number(printed.value, printed.metric)
    verdict: Verdict = UNTESTED if differs else "reproduced" if inside else NOT
    return Finding(here, interval, where, verdict)


def _differs(printed: PublishedNumber, row: Row) -> list[str]:
    """Lists the differences between a row and a published number."""
    cell = row[1][0].cell
    differences = [] if cell.model == printed.model else [f"model {cell.model}"]
    if cell.task != printed.task:
        differences.append(f"task {cell.task}")
    if cell.budget != FULL:
        differences.append(f"budget {cell.budget}")
    if cell.overrides:
        differences.append(str(cell.overrides))
    if stands_apart(row[1]):
        differences.append(f"{100 * counted(row[1]):.1f} % zeros")
    return differences + ([f"paper: {printed.recipe}"] if printed.recipe else [])


def _same_level(printed: PublishedNumber, row: Row) -> bool:
    cell = row[1][0].cell
    near = abs(cell.sparsity - (printed.sparsity or 0.0)) <= 0.005
    return cell.method == printed.method and cell.pattern.text == printed.pattern and near


def _scores(records: Sequence[Record], metric: str) -> list[float]:
    """Returns the metric of each record; an empty list if a record lacks it."""
    values = [r.scores.all.get(metric) for r in records if r.scores]
    known = [value for value in values if value is not None]
    return known if len(known) == len(records) else []


def _number(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.2f}"
