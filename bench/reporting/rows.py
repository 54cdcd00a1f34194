"""Rows of a table: the seeds of one method, level and set of parameters; and their names.

A row holds records of one kind: made on this machine, published beside them, or unverified.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from bench.core.cell import Cell
from bench.core.collapse import collapsed
from bench.core.overrides import Overrides
from bench.core.record import PUBLISHED, Record, verified
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning.registry import is_stale

NAME = ("method", "pattern", "quantized")
"""Header of what `name` gives."""

Mark = Literal["", "published", "unverified"]
"""The kind of a row's records, as tables print it; empty for those of this checkout."""

Key = tuple[Any, ...]
"""Method, pattern, sparsity, overrides and mark."""

Row = tuple[Key, list[Record]]

Group = tuple[str, str, str, tuple[tuple[str, Any], ...]]
"""What the records of one table have in common: task, model, budget and what departs from it."""

Link = Callable[[str, Sequence[Record]], str]
"""Makes a score's text lead to the records that it comes from."""

Clean = Callable[[str], str]
"""Makes foreign text harmless in a table."""


def unlinked(text: str, _: Any) -> str:
    """Leaves a text as it is, for pages that cannot link."""
    return text


def ordered(records: Sequence[Record]) -> list[Row]:
    """Returns the records of each row, by sparsity and then score; published ones come last."""
    by_row: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        by_row[_key(record)].append(record)

    def order(key: Key) -> Key:
        method, pattern, sparsity, _, mark = key
        best_first = -1 if higher(by_row[key]) else 1
        score = best_first * mean(by_row[key])
        return mark == "published", sparsity, pattern, score, method, mark

    return [(key, by_row[key]) for key in sorted(by_row, key=order)]


def mark_of(record: Record) -> Mark:
    """Returns the mark of the record's row."""
    if record.origin == PUBLISHED:
        return "published"
    return "" if verified(record) else "unverified"


def stale_note(records: Iterable[Record]) -> list[str]:
    """Returns a line with the methods whose records are of an earlier version, or none."""
    stale: dict[Mark, dict[str, bool]] = defaultdict(dict)
    for record in records:
        names = stale[mark_of(record)]
        names[record.cell.method] = names.get(record.cell.method, False) or is_stale(record)
    told = []
    for mark, names in sorted(stale.items()):
        old = sorted(name for name, is_old in names.items() if is_old)
        whole = " ".join(filter(None, ("all", mark, "rows")))
        told += [whole] if len(old) == len(names) else [marked(name, mark) for name in old]
    return (
        [f"Of an earlier version of the code, to be run again: {', '.join(told)}."] if told else []
    )


def own_first(own: Sequence[Record], published: Sequence[Record]) -> list[Record]:
    """Returns own records, and the published ones of all other rows."""
    rows = {(group_of(r), _key(r)[:4]) for r in own}
    return [*own, *(r for r in published if (group_of(r), _key(r)[:4]) not in rows)]


def marked(text: str, mark: Mark) -> str:
    """Returns a text with its row's mark, if any: `pst (published)`."""
    return f"{text} ({mark})" if mark else text


def group_of(record: Record) -> Group:
    """Returns the table that a record belongs to."""
    cell = record.cell
    return cell.task, cell.model, cell.budget, cell.overrides.of_budget.flat


def with_published(own: Sequence[Record], published: Sequence[Record]) -> list[Record]:
    """Returns own records, and the published ones of the same tables after them."""
    groups = set(map(group_of, own))
    return [*own, *(record for record in published if group_of(record) in groups)]


def _key(record: Record) -> Key:
    cell = record.cell
    return cell.method, cell.pattern, cell.sparsity, cell.overrides, mark_of(record)


def name(key: Key, clean: Clean) -> list[str]:
    """Returns a row's name: method with parameters, pattern with level, quantization."""
    method, pattern, sparsity, overrides, mark = key
    quantization = overrides.quantization
    return [
        clean(marked(method_name(method, overrides), mark)),
        clean(pattern.at(sparsity)),
        clean(str(quantization)) if quantization else "–",
    ]


def method_name(method: str, overrides: Overrides) -> str:
    """Names a method with the parameters that are not its defaults: `pst lr=0.001`."""
    return " ".join([method, *(f"{k}={v}" for k, v in overrides.method)])


def label_of(cell: Cell, choices: Choices = NO_CHOICES) -> str:
    """Names a cell's method: `pst` where its settings were chosen, else with its parameters.

    Default settings are called so where trials chose other ones: `pst default`.
    """
    if choices.behind(cell):
        return cell.method
    if not cell.overrides.method and choices.of(cell):
        return f"{cell.method} default"
    return method_name(cell.method, cell.overrides)


def higher(records: Sequence[Record]) -> bool:
    """Tells whether a higher score is better; records of one table agree."""
    return all(r.scores.higher_is_better for r in records if r.scores)


def score(records: Sequence[Record], digits: int) -> str:
    """Returns the mean primary score as printed, with its standard deviation over seeds."""
    values = printed_scores(records)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def collapse_note(records: Sequence[Record], digits: int) -> str:
    """Tells how many of a row's runs have collapsed, and the mean of the others; or nothing."""
    rest = [record for record in records if not collapsed(record)]
    if len(rest) == len(records):
        return ""
    note = f", collapsed {len(records) - len(rest)} of {len(records)}"
    if rest:
        note += f" ({statistics.fmean(printed_scores(rest)):.{digits}f} without)"
    return note


def printed_scores(records: Sequence[Record]) -> list[float]:
    """Returns the primary score of each record in the unit of tables."""
    return [r.scores.unit * r.scores.value for r in records if r.scores]


def mean(records: Sequence[Record]) -> float:
    """Returns the mean primary score, as the task returned it."""
    return statistics.fmean(r.scores.value for r in records if r.scores)
