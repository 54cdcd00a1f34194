"""The main table of the front page: a method a row, a level of sparsity a column."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.core.cell import REFERENCE
from bench.core.collapse import collapsed
from bench.core.files import write_atomic
from bench.core.record import Record
from bench.core.store import path_of
from bench.core.tables import escape, markdown, percent
from bench.reporting.leaderboard import Board, boards
from bench.reporting.rows import (
    Row,
    collapse_note,
    higher,
    mean,
    method_name,
    name,
    score,
    stale_note,
)

MARGIN = 0.01
"""How far the counted sparsity may be from a column's; other rows are on the board alone."""


BLOCK = re.compile(r"(?<=<!-- board -->\n).*?(?=\n<!-- /board -->)", re.S)
"""Where the table stands on the front page."""


def renewed(page: Path, records: Sequence[Record]) -> list[Path]:
    """Puts the table between a page's markers; returns the page if it has them."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not BLOCK.search(text):
        return []
    table = front(records)
    write_atomic(page, BLOCK.sub(lambda _: table, text))
    return [page]


def front(records: Sequence[Record]) -> str:
    """Returns a Markdown table for each board of records in `results/`; scores link to them."""
    return "\n\n".join(map(_table, boards(records)))


def _table(board: Board) -> str:
    kept = [row for row in board.rows if _counted(row)]
    levels = {name(key, str)[1]: key[2] for key, _ in kept}
    columns = sorted(levels, key=lambda text: (text != "dense", ":" in text, levels[text], text))
    cells: dict[str, dict[str, Row]] = {}
    for key, inside in kept:
        cells.setdefault(method_name(key[0], key[3]), {})[name(key, str)[1]] = (key, inside)
    best_first = -1 if higher(board.records) else 1

    def order(method: str) -> tuple[bool, list[float]]:
        found = cells[method]
        means = [
            best_first * mean(found[level][1]) if level in found else float("inf")
            for level in columns[1:]
        ]
        return method != REFERENCE, means

    rows = [_row(method, cells[method], columns) for method in sorted(cells, key=order)]
    table = markdown(("method", *columns, "trained %"), rows)
    return "\n\n".join([table, _note(board, len(board.rows) - len(kept))])


def _row(method: str, found: dict[str, Row], columns: Sequence[str]) -> list[str]:
    key, records = next(iter(found.values()))
    params = records[0].params
    assert params is not None
    label = f"[`{key[0]}`](methods/README.md#{key[0]}){escape(method.removeprefix(key[0]))}"
    scores = [_score(found[level][1]) if level in found else "–" for level in columns]
    return [label, *scores, percent(params.trainable.body / params.total)]


def _score(records: Sequence[Record]) -> str:
    folder = path_of(records[0].cell).parent.as_posix()
    return f"[{score(records, 1)}](results/{folder}){collapse_note(records, 1)}"


def _counted(row: Row) -> bool:
    """Tells whether a row's counted sparsity is that of its column."""
    (_, _, sparsity, *_), records = row
    counted = statistics.fmean(r.sparsity.overall for r in records if r.sparsity)
    return abs(counted - float(sparsity)) <= MARGIN


def _note(board: Board, apart: int) -> str:
    first = board.records[0]
    assert first.scores is not None
    assert first.budget is not None
    seeds = sorted({len(records) for _, records in board.rows})
    parts = [
        f"{first.scores.metric.capitalize()} on {first.scores.n:,} items of `{first.cell.task}`, "
        f"{first.cell.model}, {first.budget.steps} steps of {first.budget.batch}; mean ± sd of "
        f"{' or '.join(map(str, seeds))} seeds. *Trained* is the share of the model's parameters."
    ]
    if apart:
        parts.append(
            f"The board has {apart} more rows, whose counted sparsity is not that of a column."
        )
    if any(map(collapsed, board.records)):
        parts.append(
            "*Collapsed* runs are no better than chance (the majority class), within two standard "
            "errors."
        )
    return " ".join([*parts, *stale_note(board.records)])
