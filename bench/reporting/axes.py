"""What quality is plotted against: training time relative to dense, and the trained share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench.core.record import Record
from bench.reporting import cost_tables
from bench.reporting.rows import Row, mark_of


class Cost(NamedTuple):
    """An axis: its name, its unit, and a row's place on it (None where it was not counted)."""

    label: str
    unit: str
    of: Callable[[Sequence[Record]], float | None]


def costs(records: Sequence[Record], dense: Row | None) -> list[Cost]:
    """Returns the axes of some rows: training time on each machine, then the trained share.

    Published records beside own ones have no times: they are of another machine.

    Args:
        records: of the rows.
        dense: the row that times are relative to; there are none without it.
    """
    found = []
    machines = {cost_tables.hardware(r) for r in records if mark_of(r) != "published"}
    for machine in sorted(machines):
        whole = None if dense is None else _seconds(machine, dense[1])
        if whole:
            label = f"training time / dense's ({machine})"
            of = partial(_relative, machine, whole)
            found.append(Cost(label, "× dense's training time", of))
    return [*found, Cost("trained, % of the model's parameters", "% trained", _trained)]


def _trained(records: Sequence[Record]) -> float | None:
    params = records[0].params
    if params is None:
        return None
    # Four digits, as printed: 99.997 % is the whole model without its head.
    return float(f"{100 * params.trainable.body / params.total:.4g}")


def _relative(machine: str, dense: float, records: Sequence[Record]) -> float | None:
    taken = _seconds(machine, records)
    return None if taken is None else taken / dense


def _seconds(machine: str, records: Sequence[Record]) -> float | None:
    """Returns the mean seconds on one machine."""
    taken = [cost_tables.seconds(r) for r in records if cost_tables.hardware(r) == machine]
    return statistics.fmean(taken) if taken else None
