"""Numbers to pixels along an axis, and the round numbers that are written at a logarithmic one.

Vega draws the axes. This says where it puts a number, for labels that may not lie on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_ONE = 1e-4
"""Numbers that differ by less, relative to the largest, are one: rounding counts zeros apart."""

_APART = 4.0
"""The lowest number above 0 / the constant of a logarithmic axis with zeros."""


class Scale:
    """Numbers → pixels from 0 to `length`, linear or logarithmic.

    A logarithmic axis that has zeros to show is `log(1 + x / c)` (Vega's `symlog`), where c is a
    quarter of the lowest number above 0, so that zeros stand clearly apart.

    Args:
        values: what is to be shown.
        length: pixels.
        log: numbers above 0 by their logarithm.
        inset: pixels that stay free at both ends.
        turned: the lowest number is at `length`.
    """

    def __init__(
        self, values: Sequence[float], length: float, log: bool, inset: float, turned: bool = False
    ) -> None:
        self.length, self.inset, self.turned = length, inset, turned
        self.log, self.constant = log, 0.0
        values = values or [1.0]
        self.low, self.high = min(values), max(values)
        if log and self.low <= 0:  # twelve decades at most, so that the ratio stays a number
            least = min((v for v in values if v > 0), default=1.0)
            self.constant = max(least / _APART, self.high / 1e12)
        size = 1.0 if log else max(abs(self.low), abs(self.high))  # logarithms differ relatively
        if self._in(self.high) - self._in(self.low) <= _ONE * size:
            # One value stands in the middle.
            margin = max(0.05 * abs(self.high), 0.0 if log and self.high else 1e-6)
            self.low, self.high = self.low - margin, self.high + margin

    def __call__(self, value: float) -> float:
        """Returns the pixel of a number."""
        first, last = self._in(self.low), self._in(self.high)
        share = (self._in(value) - first) / (last - first)
        pixel = self.inset + share * (self.length - 2 * self.inset)
        return self.length - pixel if self.turned else pixel

    def ticks(self) -> list[float]:
        """Returns 1, 2 and 5 of every decade of a logarithmic axis, or 1 alone where it is long."""
        low = self.constant * _APART or self.low
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(self.high))
        digits, step = ((1, 2, 5), 1) if last - first <= 3 else ((1,), max(1, (last - first) // 6))
        rounded = [float(f"{d}e{e}") for e in range(first, last + 1, step) for d in digits]
        return [0.0] * bool(self.constant) + [v for v in rounded if low <= v <= self.high]

    def vega(self) -> dict[str, Any]:
        """Returns the same scale for Vega-Lite."""
        kind = ("symlog" if self.constant else "log") if self.log else "linear"
        ends = [self.length, 0] if self.turned else [0, self.length]
        return {
            "type": kind, "domain": [self.low, self.high], "range": ends, "padding": self.inset,
            "nice": False, "zero": False, **({"constant": self.constant} if self.constant else {}),
        }  # fmt: skip

    def _in(self, value: float) -> float:
        if not self.log:
            return value
        return math.log1p(value / self.constant) if self.constant else math.log(value)
