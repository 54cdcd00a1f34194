"""What quality is plotted against: time (relative to dense where dense trains), trained share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench.core.record import Record
from bench.reporting import cost_tables
from bench.reporting.rows import Row


class Cost(NamedTuple):
    """An axis: its name, its unit, and a row's place on it (None where it was not counted)."""

    label: str
    unit: str
    of: Callable[[Sequence[Record]], float | None]


def costs(dense: Row | None) -> list[Cost]:
    """Returns the axes: time on the dense row's machine, and the trained share.

    Args:
        dense: the row that times are relative to, if it trains; there are none without it.
    """
    found = []
    if dense and (machine := cost_tables.one_machine(dense[1])):
        if cost_tables.trains(dense[1]):
            label, unit, time = "training time / dense's", "× dense's training time", _relative
        else:
            label, unit, time = f"seconds, {machine}", "s", _absolute
        found.append(Cost(label, unit, partial(time, dense[1])))
    return [*found, Cost("trained, % of the model's parameters", "% trained", _trained)]


def _relative(dense: Sequence[Record], records: Sequence[Record]) -> float | None:
    return cost_tables.relative_time(records, dense)


def _absolute(dense: Sequence[Record], records: Sequence[Record]) -> float | None:
    return cost_tables.absolute_time(records, dense)


def _trained(records: Sequence[Record]) -> float | None:
    params = records[0].params
    if params is None:
        return None
    # Four digits, as printed: 99.997 % is the whole model without its head.
    return float(f"{100 * params.trainable.body / params.total:.4g}")
