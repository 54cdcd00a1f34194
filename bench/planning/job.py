"""A job: a cell with its names resolved. The planner makes it once and hands it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.api import Method, Split, Task
from bench.core.cell import REFERENCE, Budget, Cell
from bench.core.errors import BenchError, unknown
from bench.core.overrides import Overrides
from bench.core.parameters import make_parameters
from bench.core.record_parts import Versions
from bench.planning import registry
from bench.sources.catalog import Place, place_of


@dataclass(frozen=True)
class Job:
    """A cell with everything that its names stand for. Nothing below asks the registry again.

    Attributes:
        cell: the cell to run.
        method: the method's class.
        params: the method's parameters, an instance of `method.Params`.
        task: data, head and metric.
        budget: the numbers that limit the method.
        place: location of the model's weights.
        versions: present versions of method and task.
        split: what is scored: `test`, or `select` for a trial of settings.
    """

    cell: Cell
    method: type[Method]
    params: Any
    task: Task
    budget: Budget
    place: Place
    versions: Versions
    split: Split = "test"

    @classmethod
    def resolve(cls, cell: Cell, split: Split = "test") -> Job:
        """Looks up the cell's names and checks its parameters and budget; fetches nothing.

        Raises:
            BenchError: a name is unknown, or a parameter or a budget is not allowed.
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
            split=split,
        )
        job.make_method().check(cell, job.budget)
        return job

    def make_method(self) -> Method:
        """Makes the method with its parameters, not yet attached to a model."""
        return self.method(self.params)

    @cached_property
    def dense(self) -> Job:
        """The job of the dense cell of the same task, model, seed and budget."""
        return Job.resolve(self.cell.dense, self.split)

    def on(self, split: Split) -> Job:
        """Returns the same job, scored on another split."""
        return dataclasses.replace(self, split=split)

    @property
    def order(self) -> dict[str, Any]:
        """The job as JSON, for the process that runs it."""
        return {"cell": self.cell.model_dump(mode="json"), "split": self.split}

    @classmethod
    def of_order(cls, order: Mapping[str, Any]) -> Job:
        """Makes the job that `order` describes."""
        return cls.resolve(Cell.model_validate(order["cell"]), order["split"])

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
        """Whether the cell starts or learns from the dense cell's weights, which must run first."""
        needs = self.make_method().needs_dense or self.only_rounds
        return needs and self.task.finetunes


def parameters_of(method: type[Method], overrides: Overrides) -> Any:
    """Makes a method's parameters from the overrides of a cell.

    Raises:
        BenchError: the method has no such parameter, or does not allow its value.
    """
    return make_parameters(method.Params, dict(overrides.method), f"method {method.name}")


def _budget(cell: Cell, task: Task) -> Budget:
    """Makes the cell's budget from the task's budget and the cell's overrides.

    Raises:
        BenchError: there is no such budget or field, or the task has fewer items.
    """
    if cell.budget not in task.budgets:
        raise unknown("budget", cell.budget, task.budgets)
    values = dataclasses.asdict(task.budgets[cell.budget]) | dict(cell.overrides.budget)
    budget = make_parameters(Budget, values, "budget")
    if budget.items and budget.items > task.limit:
        most = (
            f"scores at most {task.limit} items"
            if task.limit
            else "is always scored on all its items"
        )
        raise BenchError(f"budget.items={budget.items}: {cell.task} {most}")
    return budget
