"""Estimates what a cell takes: seconds from existing records, training MACs by counting."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.core import provenance
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError
from bench.core.record import PUBLISHED, Record
from bench.planning.job import Job
from bench.sources.architectures import config_of, for_task


class Estimator:
    """Estimates seconds from done records, if possible of this machine or of its kind.

    The estimate is the median of the most similar records, in this order:

    * the same method and pattern on the same task, model and budget;
    * any method on them that also trains (or also does not train);
    * such a method on the same model, with training time scaled by the tokens of the budget;
    * the same three among the records of other kinds of machine.

    Args:
        records: done records of any machine.

    Attributes:
        elsewhere: whether an estimate came from another kind of machine.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        here = _machine(provenance.env())
        self.everywhere = list(records)
        alike = [r for r in self.everywhere if _machine(r.env) == here]
        own = [r for r in alike if r.origin != PUBLISHED]
        self.nearest = (own, alike)
        self.elsewhere = False
        self.update_macs: dict[Any, int | None] = {}

    def seconds(self, job: Job) -> float | None:
        """Returns the estimated seconds of a cell; None without a similar record."""
        cell, budget = job.cell, job.budget
        setting = _setting(cell, budget)
        similar: Sequence[Callable[[Record], bool]] = (
            lambda r: (
                _setting_of(r) == setting
                and _kind(r.cell) == _kind(cell)
                and _trained(r) == job.trains
            ),
            lambda r: _setting_of(r) == setting and _trained(r) == job.trains,
            lambda r: r.cell.model == cell.model and _trained(r) == job.trains,
        )
        here = itertools.product(similar, self.nearest)
        anywhere = itertools.product(similar, [self.everywhere])
        for alike, records in itertools.chain(here, anywhere):
            if taken := [_scaled(r, budget) for r in records if alike(r)]:
                self.elsewhere = self.elsewhere or records is self.everywhere
                return statistics.median(taken)
        return None

    def peak_bytes(self, job: Job) -> int | None:
        """Returns the most memory that a cell of the same task, model and budget took, if any."""
        setting = _setting(job.cell, job.budget)
        alike = [r for r in self.everywhere if _setting_of(r) == setting]
        return max((r.cost.peak_bytes for r in alike if r.cost), default=None)

    def training_macs(self, job: Job) -> int | None:
        """Counts the multiply-adds of a cell's whole training; None if it cannot."""
        if not job.trains:
            return 0
        key = _shapes(job)
        if key not in self.update_macs:
            self.update_macs[key] = _update_macs(job)
        of_a_sequence = self.update_macs[key]
        if of_a_sequence is None:
            return None
        return of_a_sequence * job.budget.batch * job.budget.steps


def _shapes(job: Job) -> Any:
    """Returns what the products of an update depend on; the data, seed, steps, level do not count.

    Masks multiply element by element, so only whether there is one matters.
    """
    cell, budget, task = job.cell, job.budget, job.task
    method = (cell.method, cell.overrides.method, cell.pattern, cell.sparsity > 0)
    return job.place.name, task.head, task.labels, *method, budget.batch, budget.length


def _update_macs(job: Job) -> int | None:
    from bench.costs import without_weights  # here: seconds are estimated without transformers

    try:
        model, config = for_task(config_of(job.place.name), job.task)
        return without_weights.update_macs_by_parts(
            job.make_method, job.cell, job.budget, model, config
        )
    except BenchError:
        return None


def _machine(env: dict[str, Any]) -> Any:
    return env.get("gpu", env.get("cpu"))


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.method, cell.pattern.text


def _trained(record: Record) -> bool:
    assert record.params is not None
    return record.params.trainable.body + record.params.trainable.head > 0


def _setting(cell: Cell, budget: Budget) -> tuple[str, str, Budget]:
    return cell.task, cell.model, dataclasses.replace(budget, timeout_s=1.0)


def _setting_of(record: Record) -> tuple[str, str, Budget]:
    assert record.budget is not None
    return _setting(record.cell, record.budget)


def _scaled(record: Record, budget: Budget) -> float:
    assert record.budget is not None
    assert record.cost is not None
    cost, tokens = record.cost, _tokens(record.budget)
    return cost.train_s * _tokens(budget) / tokens + cost.prune_s + cost.eval_s


def _tokens(budget: Budget) -> int:
    return budget.steps * budget.batch * budget.length
