"""What a cell will take: seconds by the records that there are, training MACs by counting."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from bench.core import provenance
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError
from bench.core.record import Record
from bench.costs import without_weights
from bench.planning import registry
from bench.planning.job import budget_of, hyper_of, trains
from bench.sources.architectures import class_of, config_of


class Estimator:
    """Seconds of cells, learned from done records of this kind of machine.

    The nearest records decide, by their median: the same method on the same task, model, pattern
    and budget; any method that trains as well (or as little); that on another task or budget,
    training time scaled by its tokens.

    Args:
        records: done ones, of any machine.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        here = _machine(provenance.env())
        self.records = [r for r in records if _machine(r.env) == here]

    def seconds(self, cell: Cell) -> float | None:
        """Seconds that the cell will take; None where no record tells."""
        budget = budget_of(cell)
        trains = _trains(cell)
        similar: Sequence[Callable[[Record], bool]] = (
            lambda r: _place(r) == _place_of(cell, budget) and _kind(r.cell) == _kind(cell),
            lambda r: _place(r) == _place_of(cell, budget) and _trains(r.cell) == trains,
            lambda r: r.cell.model == cell.model and _trains(r.cell) == trains,
        )
        for alike in similar:
            if found := [_scaled(r, budget) for r in self.records if alike(r)]:
                return statistics.median(found)
        return None


@cache
def _update_macs(cell: Cell) -> int:
    task, kind = registry.task(cell.task), registry.method(cell.method)
    config = config_of(cell.model)
    if task.head == "classification":
        config.num_labels = task.labels
    method, model = kind(kind.Params(**hyper_of(cell))), class_of(config, task.head)
    return without_weights.update_macs(
        without_weights.attach(method, cell, budget_of(cell), model, config)
    )


def training_macs(cell: Cell) -> int | None:
    """Multiply-adds of all of a cell's training; None where they cannot be counted from here."""
    if not trains(cell):
        return 0
    budget = budget_of(cell)
    try:
        a_sequence = _update_macs(cell.model_copy(update={"seed": 1}))  # alike for all seeds
    except BenchError:
        return None
    return a_sequence * budget.batch * budget.steps


def spoken(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _machine(env: dict[str, Any]) -> Any:
    return env.get("gpu", env.get("cpu"))


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.method, cell.pattern


def _trains(cell: Cell) -> bool:
    return cell.method in registry.names("method") and registry.method(cell.method).trains


def _place_of(cell: Cell, budget: Budget) -> tuple[str, str, Budget]:
    return cell.task, cell.model, dataclasses.replace(budget, timeout_s=1.0)


def _place(record: Record) -> tuple[str, str, Budget]:
    assert record.budget is not None
    return _place_of(record.cell, record.budget)


def _scaled(record: Record, budget: Budget) -> float:
    assert record.budget is not None
    assert record.cost is not None
    cost, tokens = record.cost, _tokens(record.budget)
    return cost.train_s * _tokens(budget) / tokens + cost.prune_s + cost.eval_s


def _tokens(budget: Budget) -> int:
    return budget.steps * budget.batch * budget.length
