"""What `sparsebench plan` prints."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.cli.flags import above_zero
from bench.cli.output import say

if TYPE_CHECKING:
    from bench.core.cell import Cell
    from bench.core.store import Store
    from bench.planning.plan import Planned


@dataclass(frozen=True)
class Device:
    """A stated device, for hours that no record tells.

    Attributes:
        tflops: its peak, in 10¹² floating-point operations a second.
        utilization: the share of the peak that training reaches.
    """

    tflops: float
    utilization: float

    @staticmethod
    def add_flags(command: argparse.ArgumentParser) -> None:
        """Adds --tflops and --utilization."""
        command.add_argument(
            "--tflops",
            type=above_zero,
            metavar="T",
            help="state times of training on a device of this peak, in TFLOP/s, instead of this "
            "machine's",
        )
        command.add_argument(
            "--utilization",
            type=above_zero,
            default=0.4,
            metavar="U",
            help="with --tflops: the share of the peak that training reaches (0.4)",
        )

    @classmethod
    def of(cls, options: argparse.Namespace) -> Device | None:
        """Returns the device that a user states, if any."""
        return cls(options.tflops, options.utilization) if options.tflops else None

    def seconds(self, macs: int) -> float:
        """Returns the seconds of a number of multiply-adds, two operations each."""
        return 2 * macs / (self.tflops * 1e12 * self.utilization)

    def __str__(self) -> str:
        return f"one device of {self.tflops:g} TFLOP/s, {100 * self.utilization:g} % of it used"


def show_plan(planned: Sequence[Planned], store: Store, device: Device | None = None) -> None:
    """Prints each cell's state, estimated time and training MACs, then the sums.

    With a stated device, times are those of the counted training on it, not those of records.
    """
    todo = [item.job for item in planned if item.todo]
    seconds: dict[Cell, float | None] = {}
    macs: dict[Cell, int | None] = {}
    if todo:  # counting loads torch and transformers
        from bench.engine.estimate import Estimator

        estimator = Estimator(store.records()[0])
        macs = {job.cell: estimator.training_macs(job) for job in todo}
        if device:
            seconds = {cell: device.seconds(n) if n else None for cell, n in macs.items()}
        else:
            seconds = {job.cell: estimator.seconds(job) for job in todo}
    for item in planned:
        cell = item.job.cell
        cost = _about([seconds[cell]], [macs[cell]]) if item.todo else ""
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {cell}  {cost}".rstrip())
    states = [item.state for item in planned]
    counts = counted(states) if len(set(states)) > 1 else ""
    total = _about(list(seconds.values()), list(macs.values()))
    if device:
        total += f" on {device}: training alone" if total else "nothing trains"
        uncounted = sum(n is None for n in macs.values())
        total += f"; {uncounted} could not be counted" if uncounted else ""
    else:
        unknown = sum(time is None for time in seconds.values())
        total += f"; no record tells the time of {unknown}" if 0 < unknown < len(todo) else ""
    say(f"{len(todo)} of {len(planned)} cells to run{counts}{'; ' if total else ''}{total}")


def _about(times: Sequence[float | None], macs: Sequence[int | None]) -> str:
    from bench.core.tables import duration, human

    known = [time for time in times if time is not None]
    counts = [count for count in macs if count]
    parts = [duration(sum(known))] if known else []
    parts += [f"{human(sum(counts))} training MACs"] if counts else []
    return f"about {', '.join(parts)}" if parts else ""


def counted(states: Sequence[str]) -> str:
    """Counts states: ` (2 failed, 1 stale)`; an empty text where there are none."""
    counts = Counter(states)
    return f" ({', '.join(f'{n} {state}' for state, n in counts.items())})" if counts else ""
