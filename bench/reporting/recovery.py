"""Recovery: how much of the dense model's score a row keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.core.record import Record
from bench.reporting.rows import Mark, higher, mark_of


def recovery_of(records: Sequence[Record], dense: dict[Any, Record]) -> float | None:
    """Returns mean score / mean dense score over the same seeds, inverted where lower is better.

    None where a dense record is missing.
    """
    pairs = [(r, _dense_of(r, dense)) for r in records]
    scores = [(r.scores.value, d.scores.value) for r, d in pairs if r.scores and d and d.scores]
    found, base = sum(s for s, _ in scores), sum(d for _, d in scores)
    if not higher(records):
        found, base = base, found
    if len(scores) < len(records) or base <= 0:
        return None
    return found / base


def _dense_of(record: Record, dense: dict[Any, Record]) -> Record | None:
    """Returns the dense record of the same kind, else one of another kind."""
    marks: tuple[Mark, ...] = (mark_of(record), "", "published", "unverified")
    found = (dense.get((mark, record.cell.dense)) for mark in marks)
    return next((reference for reference in found if reference is not None), None)
