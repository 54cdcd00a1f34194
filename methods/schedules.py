"""Schedules over training progress."""

from __future__ import annotations


def cubic(t: float, start: float, end: float, initial: float, final: float) -> float:
    """The cubic ramp that all gradual pruning shares (METHODS.md §1.5).

    Args:
        t: progress, in the unit of `start` and `end`.
        start: last point of the initial hold.
        end: first point of the final hold.
        initial: value until `start`.
        final: value from `end` on.

    Raises:
        ValueError: `end` is not after `start`.
    """
    if end <= start:
        raise ValueError(f"the ramp must end after it starts, not {start} to {end}")
    if t <= start:
        return initial
    if t > end:
        return final
    return final + (initial - final) * (1.0 - (t - start) / (end - start)) ** 3
