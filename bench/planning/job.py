"""A cell with its names resolved: made once by the planner and handed down from there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.api import Method, Task
from bench.core.cell import REFERENCE, Budget, Cell
from bench.core.errors import BenchError, unknown
from bench.core.overrides import Overrides
from bench.core.parameters import make_parameters
from bench.core.record import Versions
from bench.planning import registry
from bench.sources.catalog import Place, place_of


@dataclass(frozen=True)
class Job:
    """A cell and all that its names stand for; nothing below asks the registry again.

    Attributes:
        cell: what to run.
        method: the method's class.
        params: the method's parameters, an instance of `method.Params`.
        task: data, head and metric.
        budget: what the method may spend, in numbers.
        place: where the model's weights lie.
        versions: present versions of method and task.
    """

    cell: Cell
    method: type[Method]
    params: Any
    task: Task
    budget: Budget
    place: Place
    versions: Versions

    @classmethod
    def resolve(cls, cell: Cell) -> Job:
        """Looks up the cell's names and checks its parameters and budget; fetches nothing.

        Raises:
            BenchError: an unknown name, a parameter or a budget that cannot be.
        """
        method, task = registry.method(cell.method), registry.task(cell.task)
        job = cls(
            cell=cell,
            method=method,
            params=parameters_of(method, cell.overrides),
            task=task,
            budget=_budget(cell, task),
            place=place_of(cell.model),
            versions=Versions(method=method.version, task=task.version),
        )
        job.make_method().check(cell, job.budget)
        return job

    def make_method(self) -> Method:
        """Makes the method with its parameters, not yet attached to a model."""
        return self.method(self.params)

    @cached_property
    def dense(self) -> Job:
        """The dense cell of the same task, model, seed and budget."""
        return Job.resolve(self.cell.dense)

    @property
    def only_rounds(self) -> bool:
        """Whether the cell differs from its dense cell by quantization alone."""
        own = self.cell.overrides
        unquantized = Overrides(method=own.method, budget=own.budget)
        plain = self.cell.model_copy(update={"overrides": unquantized})
        return plain != self.cell and plain == self.cell.dense

    @property
    def trains(self) -> bool:
        """Whether the cell trains: its method and its task do, and it is not only quantized."""
        if not (self.method.trains and self.task.trains):
            return False
        # Without fine-tuning, the dense model is the pretrained one.
        return (self.task.finetunes and not self.only_rounds) or self.cell.method != REFERENCE

    @property
    def needs_dense(self) -> bool:
        """Whether the dense cell must have been run: the cell starts or learns from its weights."""
        needs = self.make_method().needs_dense or self.only_rounds
        return needs and self.task.finetunes


def parameters_of(method: type[Method], overrides: Overrides) -> Any:
    """Makes a method's parameters from the overrides of a cell.

    Raises:
        BenchError: the method has no such parameter, or refuses its value.
    """
    return make_parameters(method.Params, dict(overrides.method), f"method {method.name}")


def _budget(cell: Cell, task: Task) -> Budget:
    """Makes the cell's budget in numbers.

    Raises:
        BenchError: no such budget, no such field, or more items than the task has.
    """
    if cell.budget not in task.budgets:
        raise unknown("budget", cell.budget, task.budgets)
    values = dataclasses.asdict(task.budgets[cell.budget]) | dict(cell.overrides.budget)
    budget = make_parameters(Budget, values, "budget")
    if budget.items and budget.items > task.limit:
        most = f"has {task.limit} items" if task.limit else "is always scored on all its items"
        raise BenchError(f"budget.items={budget.items}: {cell.task} {most}")
    return budget
