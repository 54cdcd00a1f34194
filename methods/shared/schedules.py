"""Schedules over training progress."""

from __future__ import annotations

from typing import Protocol


class Holds(Protocol):
    """Parameters that state the holds before and after a ramp in warm-ups.

    Attributes:
        warmup: of the learning rate, as a fraction of the steps.
        initial_warmup: warm-ups before the ramp.
        final_warmup: warm-ups after it.
    """

    @property
    def warmup(self) -> float: ...  # noqa: D102

    @property
    def initial_warmup(self) -> float: ...  # noqa: D102

    @property
    def final_warmup(self) -> float: ...  # noqa: D102


def between_holds(params: Holds) -> tuple[float, float]:
    """Returns where the ramp starts and ends, as fractions of the steps (methods/README.md).

    The movement family states its holds in warm-ups of the learning rate.

    Raises:
        ValueError: the holds leave no room for a ramp.
    """
    start = params.initial_warmup * params.warmup
    end = 1.0 - params.final_warmup * params.warmup
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"initial_warmup {params.initial_warmup:g} and final_warmup {params.final_warmup:g} "
            f"of a warmup of {params.warmup:g}: the ramp would run from {start:g} to {end:g} of "
            "the steps; lower one of them"
        )
    return start, end


def cubic(t: float, start: float, end: float, initial: float, final: float) -> float:
    """Returns the value at `t` of the cubic ramp that gradual methods share (methods/README.md).

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
