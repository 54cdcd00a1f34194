"""The main tables on the front page of the project."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.core.files import write_atomic
from bench.core.record import Record
from bench.core.store import path_of
from bench.core.tables import escape
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning.suites import Suite
from bench.reporting.boards import Board
from bench.reporting.findings import sentences
from bench.reporting.main_table import main_table
from bench.reporting.suite_boards import by_suite

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
    """Returns findings and a Markdown table for each board of records in `results/`.

    Scores link to their records. Of a suite that states a mean over its tasks, the mean stands here
    alone. The largest board is first; the tables of the others are folded.
    """
    shown = [(s.suite, board) for s in by_suite(records, choices) for board in s.means or s.tasks]
    shown.sort(key=lambda pair: -len(pair[1].rows))
    return "\n\n".join(_section(suite, board, k > 0) for k, (suite, board) in enumerate(shown))


def _section(suite: Suite, board: Board, folded: bool) -> str:
    findings = "\n".join(f"* {escape(line)}" for line in sentences(board))
    about = f"**[{suite.name}](reports/{suite.name}.md)**: {suite.description}"
    table = main_table(board, _linked, _method)
    if folded:
        table = f"<details><summary>Table of scores</summary>\n\n{table}\n\n</details>"
    parts = [about, findings, table]
    scores = board.records[0].scores
    if scores and _is_mean(board.records):
        parts += map(escape, scores.notes or ())
    return "\n\n".join(parts)


def _is_mean(records: Sequence[Record]) -> bool:
    return len(records[0].members) > 1


def _linked(text: str, records: Sequence[Record]) -> str:
    if _is_mean(records):  # the suite's page links its tasks
        return text
    return f"[{text}](results/{path_of(records[0].cell).parent.as_posix()})"


def _method(name: str) -> str:
    return f"[`{name}`](methods/README.md#{name})"
