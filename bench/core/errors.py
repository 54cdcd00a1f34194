"""Errors that one line explains."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message (300 characters at most), else its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


Outcome = Literal["oom", "nan", "timeout", "killed", "offline", "disk", "contract", "error"]


class BenchError(Exception):
    """An error that one line explains: what was wrong and what would be right.

    Args:
        message: that line.
        kind: the failure's kind, as a failed record states it.
    """

    def __init__(self, message: str, kind: Outcome = "error") -> None:
        super().__init__(message)
        self.kind: Outcome = kind


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """Makes the error for an unknown name: it suggests close names, or how to list them."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `sparsebench list {kind}s`"
    return BenchError(f"unknown {kind} {name!r}: {hint}")


def first_error(error: ValidationError) -> str:
    """Describes pydantic's first error in one line: the field, the given value, what is allowed."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return message
    given = "" if first["type"] == "missing" else f" {first['input']!r:.200}"
    return f"{field}{given}: {message}"
