"""Tables for terminals and Markdown. Cells are escaped, since records may come from strangers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

_TEXT = frozenset(
    "method pattern quantized cell metric over better row what verdict".split()
    + "paper claim preset label model task level source".split()
    + "parameter default allowed meaning patterns fact".split()
    + ["where, what differs", "what it does"]
)
"""Names of columns that hold words; all other columns hold numbers."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

_UNITS = tuple((10 ** (3 * (7 - i)), unit) for i, unit in enumerate("ZEPTGMk"))


def human(value: float | None) -> str:
    """Formats a number with four significant digits and a unit: 22713986 → `22.71M`."""
    if value is None:
        return "–"
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Formats seconds as `40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def gib(value: int) -> str:
    """Formats a number of bytes as `1.23 GiB`."""
    return f"{value / 2**30:.2f} GiB"


def mib(value: int) -> str:
    """Formats a number of bytes as `1.2 MiB`."""
    return f"{value / 2**20:.1f} MiB"


def percent(value: float | None, digits: int = 2) -> str:
    """Formats a fraction as percent without the sign: 0.851 → `85.10`, None → `–`."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def escape(text: str) -> str:
    """Escapes a text, so that Markdown shows it literally, in one line and one table cell."""
    text = (
        re.sub(r"\s+", " ", printable(text))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)


def printable(text: str) -> str:
    """Replaces control characters, direction marks and whatever XML cannot hold by spaces."""
    return _UNPRINTABLE.sub(" ", text)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders a GitHub table; the caller escapes the cells."""
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=_align(header))


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders a table for the terminal; it makes the cells printable."""
    clean = [[printable(cell) for cell in row] for row in rows]
    return tabulate(
        clean, header, tablefmt="simple", disable_numparse=True, colalign=_align(header)
    )


def _align(header: Sequence[str]) -> list[str]:
    return ["left" if name in _TEXT else "right" for name in header]
