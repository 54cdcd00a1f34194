"""The main tables on the front page of the project."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.core.files import write_atomic
from bench.core.record import Record
from bench.core.store import path_of
from bench.core.tuning import NO_CHOICES, Choices
from bench.reporting.boards import boards
from bench.reporting.main_table import main_table

BLOCK = re.compile(r"(?<=<!-- board -->\n).*?(?=\n<!-- /board -->)", re.S)
"""Where the tables stand on the front page."""


def renewed(page: Path, records: Sequence[Record], choices: Choices = NO_CHOICES) -> list[Path]:
    """Puts the tables between a page's markers; returns the page if it has them."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not BLOCK.search(text):
        return []
    tables = front(records, choices)
    write_atomic(page, BLOCK.sub(lambda _: tables, text))
    return [page]


def front(records: Sequence[Record], choices: Choices = NO_CHOICES) -> str:
    """Returns a Markdown table for each board of records in `results/`; scores link to them."""
    return "\n\n".join(main_table(b, _linked, _method) for b in boards(records, choices))


def _linked(text: str, records: Sequence[Record]) -> str:
    return f"[{text}](results/{path_of(records[0].cell).parent.as_posix()})"


def _method(name: str) -> str:
    return f"[`{name}`](methods/README.md#{name})"
