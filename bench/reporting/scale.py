"""Numbers to pixels along an axis, and the round numbers that are written at it."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Scale:
    """Numbers → pixels, linear or logarithmic; a logarithm's zeros get a place of their own.

    Args:
        values: what is to be shown.
        start: pixel at the low end; above `end` for an axis that goes up.
        end: pixel at the high end.
        log: numbers above 0 by their logarithm.
        inset: pixels that stay free at both ends.
    """

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool, inset: float
    ) -> None:
        self.log = log
        self.zero = start + math.copysign(inset, end - start)
        known = [v for v in values if v > 0] if log else list(values)
        self.zeros = log and len(known) < len(values)
        known = known or [1.0]
        low, high = (self._in(f(known)) for f in (min, max))
        if high - low < 1e-9 * max(abs(high), 1):  # one value stands in the middle
            margin = 0.5 if log else max(0.05 * abs(high), 1e-6)
            low, high = low - margin, high + margin
        inward = math.copysign(inset, end - start)
        first = start + inward * (3.5 if self.zeros else 1)
        self.slope = (end - inward - first) / (high - low)
        self.first, self.low, self.high = first, low, high
        edge = 0.0 if self.zeros else inset
        spare = edge / abs(self.slope)
        self.range = low - spare, high + inset / abs(self.slope)

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        if self.log and value <= 0:
            return self.zero
        return self.first + self.slope * (self._in(value) - self.low)

    def ticks(self) -> list[float]:
        """A handful of round numbers inside the axis."""
        low, high = self.range
        zero = [0.0] if self.zeros else []
        if not self.log:
            return round_numbers(low, high)
        decades = range(math.floor(low), math.ceil(high) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            step = max(1, len(decades) // 6)
            found = [d * 10.0**e for e in decades if e % step == 0 for d in digits]
            found = [v for v in found if low <= math.log10(v) <= high]
            if len(found) >= 3:
                return zero + found
        found = [10**v for v in round_numbers(low, high)]
        short = [float(f"{v:.3g}") for v in found]
        inside = [low <= math.log10(v) <= high for v in short]
        return zero + [s if fits else v for s, v, fits in zip(short, found, inside, strict=True)]

    def _in(self, value: float) -> float:
        return math.log10(value) if self.log else value


def round_numbers(low: float, high: float) -> list[float]:
    """Between three and six multiples of 1, 2 or 5 × 10^n."""
    rough = (high - low) / 5.5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
