"""Rows of a table: the seeds of one method, level and set of parameters; and their names."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from bench.core.overrides import Overrides
from bench.core.record import Record, verified

NAME = ("method", "pattern", "quantized")
"""Header of what `name` gives."""

Key = tuple[Any, ...]
Row = tuple[Key, list[Record]]
Clean = Callable[[str], str]
"""Makes foreign text harmless in a table."""


def ordered(records: Sequence[Record]) -> list[Row]:
    """Returns the records of each row, by sparsity and then score."""
    by_row: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        cell = record.cell
        level = (cell.pattern, cell.sparsity, cell.overrides)
        by_row[(cell.method, *level, verified(record))].append(record)

    def order(key: Key) -> Key:
        method, pattern, sparsity, _, checked = key
        best_first = -1 if higher(by_row[key]) else 1
        return sparsity, pattern, best_first * mean(by_row[key]), method, not checked

    return [(key, by_row[key]) for key in sorted(by_row, key=order)]


def name(key: Key, clean: Clean) -> list[str]:
    """Returns a row's name: method with parameters, pattern with level, quantization."""
    method, pattern, sparsity, overrides, checked = key
    quantization = overrides.quantization
    return [
        clean(method_name(method, overrides) + ("" if checked else " (unverified)")),
        clean(pattern.at(sparsity)),
        clean(str(quantization)) if quantization else "–",
    ]


def method_name(method: str, overrides: Overrides) -> str:
    """Names a method with the parameters that are not its defaults: `pst lr=0.001`."""
    return " ".join([method, *(f"{k}={v}" for k, v in overrides.method)])


def higher(records: Sequence[Record]) -> bool:
    """Tells whether a higher score is better; records of one table agree."""
    return all(r.scores.higher_is_better for r in records if r.scores)


def mean(records: Sequence[Record]) -> float:
    """Returns the mean primary score, as the task returned it."""
    return statistics.fmean(r.scores.value for r in records if r.scores)
