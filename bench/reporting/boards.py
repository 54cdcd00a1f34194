"""Boards: the records of a task and model as rows, and columns of rows that are tested together.

A column holds the rows of one pattern, sparsity and quantizer, so of one size. A row whose counted
sparsity is not what was asked for (DSEE, whose update fills zeros; methods without a controller;
heads that are too few for the share) stands apart: it is tested in no column. A row of an earlier
version stands in its column untested.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.core.cell import REFERENCE
from bench.core.pattern import DENSE, UNSTRUCTURED
from bench.core.record import Record
from bench.core.tuning import MISS, NO_CHOICES, Choice, Choices
from bench.reporting import paired
from bench.reporting.recovery import recovery_of
from bench.reporting.rows import (
    Group,
    Key,
    Row,
    group_of,
    label_of,
    mark_of,
    marked,
    name,
    ordered,
)
from bench.reporting.statistics import ALPHA


@dataclass(frozen=True)
class Column:
    """Rows that were tested against each other.

    Attributes:
        rows: in the order of `rows.ordered`.
        tests: of all pairs, in the order of `rows`.
    """

    rows: list[Row]
    tests: paired.AllPairs

    @property
    def heading(self) -> str:
        """Returns the column's heading: `50 %`, `rows 50 %`, `2:4`, `50 % int4/64`."""
        _, pattern, sparsity, overrides, _ = self.rows[0][0]
        parts = [] if pattern == UNSTRUCTURED else [pattern.text]
        if pattern.sparsity is None and pattern != DENSE:
            parts.append(f"{100 * sparsity:g} %")
        if overrides.quantization:
            parts.append(str(overrides.quantization))
        return " ".join(parts)

    @property
    def zeros(self) -> bool:
        """Tells whether the rows are pruned."""
        return bool(self.rows[0][0][1] != DENSE)

    @property
    def tested(self) -> list[Row]:
        """Returns the rows with a rank."""
        return [row for row, place in zip(self.rows, self.tests.places, strict=True) if place]

    @property
    def best(self) -> list[Row]:
        """Returns the tested rows for which the tests find no better one."""
        places = zip(self.rows, self.tests.places, strict=True)
        return [row for row, place in places if place and place[0] == 1]

    @property
    def told_apart(self) -> str:
        """Says how many pairs are told apart: `9 of 45`."""
        count = len(self.tested)
        return f"{int((self.tests.p < ALPHA).sum()) // 2} of {count * (count - 1) // 2}"

    def rank(self, i: int) -> str:
        """Returns a row's rank as printed: `1`, `2–5` where no test tells, † over seeds alone."""
        place = self.tests.places[i]
        if place is None:
            return "–"
        told = "–".join(map(str, sorted(set(place))))
        return f"{told}{'†' if self.tests.basis == 'seeds' else ''}"


@dataclass(frozen=True)
class Board:
    """The rows of a group, in order, with all that takes the others to know.

    Attributes:
        columns: dense first, then by sparsity, N:M, and last what removes whole units.
        ranks: as printed; `–` where there is none.
        recovery: fraction of the dense score, None where a dense record is missing.
        choices: the choice that a row's settings come from, if there is one.
        labels: each row's method, with parameters that were not chosen by trials, and its mark.
    """

    group: Group
    rows: list[Row]
    columns: list[Column]
    ranks: dict[Key, str]
    recovery: dict[Key, float | None]
    choices: dict[Key, Choice]
    labels: dict[Key, str]

    @property
    def records(self) -> list[Record]:
        """Returns the records of all rows."""
        return [record for _, inside in self.rows for record in inside]

    @property
    def own(self) -> list[Row]:
        """Returns the rows that are not published ones beside those of this machine."""
        return [row for row in self.rows if row[0][-1] != "published"]

    @property
    def dense(self) -> Row | None:
        """Returns the reference's row, the own one where there is a published one too."""
        plain = (row for row in self.rows if row[0][0] == REFERENCE and not row[0][3].quantization)
        return next(plain, None)


def boards(records: Iterable[Record], choices: Choices = NO_CHOICES) -> list[Board]:
    """Returns the boards of records, by task, model and budget.

    Args:
        records: done records.
        choices: choices of settings, from which some rows may come.
    """
    found = list(records)
    dense = {(mark_of(r), r.cell): r for r in found if r.cell.method == REFERENCE}
    groups: dict[Group, list[Record]] = defaultdict(list)
    for record in found:
        groups[group_of(record)].append(record)
    made = []
    for group in sorted(groups, key=lambda g: (g[0], g[1], g[2], str(g[3]))):
        rows = ordered(groups[group])
        recovery = {key: recovery_of(inside, dense) for key, inside in rows}
        chosen = {key: choices.behind(inside[0].cell) for key, inside in rows}
        tuned = {key: choice for key, choice in chosen.items() if choice is not None}
        columns = _columns(rows)
        ranks = {key: "–" for key, _ in rows}
        for column in columns:
            for i, (key, _) in enumerate(column.rows):
                ranks[key] = column.rank(i)
        labels = {key: marked(label_of(rs[0].cell, choices), key[-1]) for key, rs in rows}
        made.append(Board(group, rows, columns, ranks, recovery, tuned, labels))
    return made


def counted(records: Sequence[Record]) -> float:
    """Returns the zeros in the target weights of a row, as a fraction, the mean over seeds."""
    return statistics.fmean(r.sparsity.overall for r in records if r.sparsity)


def stands_apart(records: Sequence[Record]) -> bool:
    """Tells whether the counted sparsity of a row's records is not that of its column.

    A share of heads alone, or of neurons alone, is no share of weights, so no count is wrong.
    """
    cell = records[0].cell
    if cell.pattern == DENSE or cell.pattern.heads != cell.pattern.neurons:
        return False
    return abs(counted(records) - cell.sparsity) > MISS + 1e-9  # 0.51 is near enough to 0.5


def level_of(key: Key) -> str:
    """Returns pattern, sparsity and quantizer as printed."""
    _, level, quantized = name(key, str)
    return level if quantized == "–" else f"{level} {quantized}"


def _columns(rows: Sequence[Row]) -> list[Column]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not stands_apart(row[1]):
            found[level_of(row[0])].append(row)

    def order(level: str) -> tuple[bool, bool, bool, str, float, str]:
        _, pattern, sparsity, *_ = found[level][0][0]
        units = pattern.removes_units
        fixed = pattern.sparsity is not None
        return pattern != DENSE, units, fixed, pattern.text if units else "", sparsity, level

    return [
        Column(found[level], paired.all_pairs([records for _, records in found[level]]))
        for level in sorted(found, key=order)
    ]
