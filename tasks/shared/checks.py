"""Checks of rows as they are loaded: one line names the task, the split, the row and the value.

Public sets hide labels behind −1 or an empty text, and a mirror's tables may lack texts. Such rows
train or score without a word, and the number is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

from bench.api import BenchError

SHOWN = 40
"""Characters of a wrong value that a message shows."""


def wrong(where: str, row: int, what: str, value: object, allowed: str) -> BenchError:
    """Returns the error for one row.

    Args:
        where: the task and the split.
        row: its number in the split, from 0.
        what: name of the column.
        value: the value there.
        allowed: what it should be, in words.
    """
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    return BenchError(f"{where} row {row}: {what} {shown}; it must be {allowed}")


def texts(where: str, column: str, values: Iterable[object]) -> list[str]:
    """Returns the values, which must all be texts; an empty one is a text.

    Raises:
        BenchError: one is not.
    """
    found = []
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong(where, row, column, value, "a text")
        found.append(value)
    return found


def labels(where: str, column: str, values: Iterable[object], classes: int) -> list[float]:
    """Returns the values, which must all be labels: classes from 0, or numbers if `classes` is 1.

    Raises:
        BenchError: one is not.
    """
    allowed = "a finite number" if classes == 1 else f"an integer from 0 to {classes - 1}"
    found = []
    for row, value in enumerate(values):
        if not is_label(value, classes):
            raise wrong(where, row, column, value, allowed)
        found.append(value)
    return found


def is_label(value: object, classes: int) -> TypeGuard[float]:
    """Returns whether the value is a class number, or a finite number if `classes` is 1."""
    if classes == 1:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, int) and 0 <= value < classes
