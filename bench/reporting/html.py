"""`reports/index.html`: every board in one file that needs no network and no server.

The page opens with the findings of its first board, and shows those of the chosen one.
Scripts and styles are inline and admitted by their hash; everything else is forbidden. The table is
plain HTML that DataTables (from the package `itables`) makes sortable; the figures lie compressed
beside it, a board each, and are drawn when their board is chosen.
"""

from __future__ import annotations

import base64
import hashlib
import re
import statistics
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from bench.core.collapse import collapsed
from bench.core.errors import BenchError
from bench.core.record import Record, number
from bench.core.tables import printable
from bench.reporting import cost_tables, looks, pareto
from bench.reporting.boards import Board
from bench.reporting.figures import Drawing
from bench.reporting.findings import sentences
from bench.reporting.leaderboard import BOARD_LEGEND, PUBLISHED_LEGEND
from bench.reporting.main_table import MAIN_LEGEND, grid
from bench.reporting.rows import Key, mark_of, name, printed_scores, stale_note

Number = float | None


class Section(NamedTuple):
    """A board on the page, and the suite that it belongs to."""

    suite: str
    board: Board
    drawings: Sequence[Drawing]


_WORDS = ("method", "pattern", "table")
_RANK = "rank"
_NUMBERS: dict[str, Callable[[Board, Key, Sequence[Record]], str]] = {
    "score": lambda _b, _k, rs: f"{statistics.fmean(printed_scores(rs)):.2f}",
    "±\u00a0sd": lambda _b, _k, rs: (
        f"{statistics.stdev(printed_scores(rs)):.2f}" if len(rs) > 1 else ""
    ),
    "seeds": lambda _b, _k, rs: str(len(rs)),
    _RANK: lambda b, k, _: b.ranks[k],
    "recovery %": lambda b, k, _: _scaled(b.recovery[k], 0.01, 1),
    "zeros %": lambda _b, _k, rs: _scaled(
        statistics.fmean(r.sparsity.overall for r in rs if r.sparsity), 0.01, 2
    ),
    "trainable, k": lambda _b, _k, rs: _scaled(number(rs[0], "params.trainable.body"), 1e3),
    "MACs effective, M": lambda _b, _k, rs: _scaled(number(rs[0], "macs.effective"), 1e6),
    "MACs realizable, M": lambda _b, _k, rs: _scaled(number(rs[0], "macs.realizable"), 1e6),
    "stored, MiB": lambda _b, _k, rs: _scaled(number(rs[0], "bytes.stored"), 2**20),
    "collapsed": lambda _b, _k, rs: str(sum(map(collapsed, rs))),
    "train + prune, s": lambda _b, _k, rs: _seconds(rs),
}
"""Columns in fixed units and without signs, so that they sort as numbers; empty where unknown."""


def page(sections: Sequence[Section], problems: Sequence[str]) -> str:
    """Returns the page's text.

    Args:
        sections: boards in the order of the page.
        problems: a line for each file that was left out.

    Raises:
        BenchError: the installed `itables` is not the library that this was written for.
    """
    script = f"{_library()}\n{_own('page.js')}"
    style = f"{_own('page.css')}{looks.dark_rules('#figures')}\n"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # by default a name that ends in .j2 would turn it off
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = printable
    beside = any(len(s.board.own) < len(s.board.rows) for s in sections)
    published = (PUBLISHED_LEGEND,) if beside else ()
    legends = (MAIN_LEGEND, BOARD_LEGEND, *published)
    legends = (*legends, pareto.FIGURE_LEGEND, cost_tables.COST_LEGEND)
    return environment.get_template("page.html.j2").render(
        policy=f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'",
        script=Markup(script),
        style=Markup(style),
        words=_WORDS,
        numbers=[*_NUMBERS],
        boards=[_board(section) for section in sections],
        figures=[_figure(section.drawings) for section in sections],
        rows=[row for i, section in enumerate(sections) for row in _rows(i, section)],
        legends=[Markup(_emphasis(legend)) for legend in legends],
        problems=problems,
    ) + "\n"  # fmt: skip


def _rows(number: int, section: Section) -> list[dict[str, Any]]:
    found = []
    for key, records in section.board.rows:
        numbers = [(c, of(section.board, key, records)) for c, of in _NUMBERS.items()]
        method, *level = name(key, str)
        found.append(
            {
                "board": number,
                "method": key[0],
                "words": [method, ", ".join(p for p in level if p != "–")],
                "numbers": [(cell, _order(cell) if c == _RANK else None) for c, cell in numbers],
            }
        )
    return found


def _order(rank: str) -> str:
    """Returns what a rank sorts by: `2–5†` → `2.005`; the last place where there is none."""
    ends = re.findall(r"\d+", rank) or ["9999"]
    return f"{ends[0]}.{ends[-1]:>03}"


def _board(section: Section) -> dict[str, Any]:
    """Returns what stands above the figures of a board: findings, old rows, and its main table."""
    headings, methods = grid(section.board)
    return {
        "label": _label(section),
        "findings": [*sentences(section.board), *stale_note(section.board.records)],
        "headings": headings,
        "methods": methods,
    }


def _label(section: Section) -> str:
    task, model, budget, overrides = section.board.group
    parts = [section.suite, task, model] + ([budget] if budget != "default" else [])
    return " · ".join([*parts, *(f"{key}={value}" for key, value in overrides)])


def _figure(drawings: Sequence[Drawing]) -> str:
    drawn = "\n".join(drawing.svg for drawing in drawings)
    return base64.b64encode(zlib.compress(drawn.encode(), 9)).decode()


def _seconds(records: Sequence[Record]) -> str:
    """Writes a row's mean seconds; nothing for a published row, which is of another machine."""
    if mark_of(records[0]) == "published":
        return ""
    return f"{cost_tables.mean_seconds(records):.1f}"


def _scaled(value: float | None, unit: float, digits: int | None = None) -> str:
    """Writes a number in its column's unit, with that many decimals or four significant digits."""
    if value is None:
        return ""
    scaled = value / unit
    if digits is None:
        return f"{scaled:.4g}" if 0.001 <= scaled < 10_000 else f"{scaled:.0f}"
    return f"{scaled:.{digits}f}"


def _emphasis(legend: str) -> str:
    """Turns our own legends' Markdown into HTML."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(Markup.escape(legend)), flags=re.DOTALL)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", text, flags=re.DOTALL)


@cache
def _library() -> str:
    """Returns DataTables as a script in which the page's own code can follow."""
    package = find_spec("itables")  # found and not imported: that would take longer than the page
    if package is None or package.origin is None:
        raise BenchError("the package itables is missing; install sparsebench's requirements")
    text = Path(package.origin).with_name("html").joinpath("dt_bundle.js").read_text("utf-8")
    exported = re.search(r"export\s*\{[^}]*?([\w$]+) as default[^}]*\};?", text)
    if exported is None or "</script" in text.lower():
        raise BenchError("itables: its bundle is not what it was; install by constraints.txt")
    return f"{text[: exported.start()]}const DataTable={exported[1]};{text[exported.end() :]}"


@cache
def _own(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Returns a script or style as the policy admits it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
