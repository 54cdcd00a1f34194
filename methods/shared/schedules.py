"""Schedules over training progress."""

from __future__ import annotations

from bench.api import BenchError


def between_holds(method: str, params) -> tuple[float, float]:
    """Where the ramp starts and ends, as fractions of the steps (methods/README.md).

    The movement family states its holds in warm-ups of the learning rate.

    Args:
        method: for the message.
        params: with `warmup`, a fraction of the steps, and `initial_warmup`, `final_warmup`.

    Raises:
        BenchError: the holds leave no room for a ramp.
    """
    start = params.initial_warmup * params.warmup
    end = 1.0 - params.final_warmup * params.warmup
    if not 0 <= start < end <= 1:
        raise BenchError(
            f"{method}: the ramp would run from {start:g} to {end:g} of the steps; lower warmup, "
            "initial_warmup or final_warmup"
        )
    return start, end


def cubic(t: float, start: float, end: float, initial: float, final: float) -> float:
    """The cubic ramp that all gradual pruning shares (methods/README.md, schedules).

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
