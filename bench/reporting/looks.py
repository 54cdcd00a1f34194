"""How figures look: a method's colour and shape, and the colours of the dark theme.

The colours differ for the colour-blind too, and stand out from their ground by 3 : 1 at least
(`tests/test_figures.py`). A figure is drawn in the light colours. The dark figure is the same file
with each colour replaced, so the files need no style sheet, which static renderers ignore.
"""

from __future__ import annotations

import re

PAPER, INK, SOFT, RULE = "white", "#1b1b1b", "#5c5c5c", "#dcdcdc"
COLOURS = ("#0a4a94", "#ad8a00", "#05806f", "#a02c00", "#1f97f4", "#dd3aa8")

_DARK_PAPER, _DARK_INK, _DARK_SOFT, _DARK_RULE = "#0d1117", "#ececec", "#ababab", "#2b3036"
_DARK_COLOURS = ("#3b6eda", "#ebc12d", "#47b585", "#d04504", "#9fc7fb", "#a06189")

DARK = dict(
    zip(
        (PAPER, INK, SOFT, RULE, *COLOURS),
        (_DARK_PAPER, _DARK_INK, _DARK_SOFT, _DARK_RULE, *_DARK_COLOURS),
        strict=True,
    )
)
"""A colour of the light theme → that of the dark one."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right")
DASHES = ((1, 0), (7, 3), (2, 2), (8, 2, 2, 2), (3, 3), (12, 2))
STAR = "M0-1.5L.4-.5L1.5-.5L.6.2L.9 1.3L0 .6L-.9 1.3L-.6.2L-1.5-.5L-.4-.5Z"
CROSS = "M-1-1L1 1M1-1L-1 1"

_PAINT = re.compile(r' (fill|stroke)="([^"]*)"')


def look(style: int, kind: str) -> dict[str, object]:
    """Returns colour, filling, shape and dashes of a series.

    Args:
        style: a method's number; below 0 is the reference.
        kind: `mark`, `hollow` for patterns other than unstructured, `cross` for unverified ones.
    """
    colour, number, shape = INK, 0, STAR
    if style >= 0:
        number = style // len(COLOURS) % len(SHAPES)
        colour, shape = COLOURS[style % len(COLOURS)], SHAPES[number]
    fill = {"mark": colour, "hollow": PAPER, "cross": "none"}[kind]
    shape = CROSS if kind == "cross" else shape
    return {"colour": colour, "fill": fill, "shape": shape, "dash": DASHES[number]}


def dark(svg: str) -> str:
    """Returns a figure in the colours of the dark theme."""
    return _PAINT.sub(lambda m: f' {m[1]}="{DARK.get(m[2], m[2])}"', svg)


def dark_rules(within: str) -> str:
    """Returns CSS that shows a page's figures in the dark theme where the reader prefers it.

    Args:
        within: selects what the figures are inside of.
    """
    rules = (
        f'{within} [{part}="{light}"]{{{part}:{shown}}}'
        for light, shown in DARK.items()
        for part in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark){{{''.join(rules)}}}"
