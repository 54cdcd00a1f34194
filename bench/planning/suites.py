"""Suites: named sets of cells, in grids that share their settings."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.api import Task
from bench.core.errors import BenchError, first_error, unknown
from bench.core.overrides import Overrides, OverridesField
from bench.core.pattern import UNSTRUCTURED, PatternField
from bench.core.run_settings import DEFAULTS, RunSettings

SUITES = Path(__file__).parent.parent / "suites"


class Grid(BaseModel):
    """Tasks × models × methods × levels × seeds with the same settings.

    Attributes:
        methods: methods that run without `--method`; empty stands for every registered method.
        baselines: methods that always run, even if `--method` names others.
        patterns: wanted patterns. A method takes those that it can make, else its own first one.
        epochs: training in passes over the task's examples, in place of the budget's steps.
        overrides: of the budget and the export for all cells. Those of the method make a variant
            of `methods`, which tables name.
        params: parameters of single methods, by the method's name: the recipe.
        tuned: whether methods without a recipe take the settings that `sparsebench tune` chose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("dense",)
    patterns: tuple[PatternField, ...] = (UNSTRUCTURED,)
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (1,)
    budget: str = "default"
    epochs: float | None = Field(default=None, gt=0)
    overrides: OverridesField = Overrides()
    params: dict[str, OverridesField] = {}
    tuned: bool = False

    @field_validator("params")
    @classmethod
    def _of_methods_alone(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        for method, given in value.items():
            if given.shared:
                name = given.shared.flat[0][0]
                raise ValueError(f"{method}: write {name} into overrides; it is not the method's")
        return value

    def overrides_of(self, method: str, task: Task, variant: bool = True) -> Overrides:
        """Returns the overrides of a cell.

        Args:
            method: the cell's method.
            task: the cell's task.
            variant: whether the method is one of `methods`, not only a baseline.

        Raises:
            BenchError: epochs are asked of a task that tells no number of examples.
        """
        own = self.overrides if variant else self.overrides.shared
        recipe = self.params.get(method, Overrides())
        return self._steps(task) | recipe | own

    def _steps(self, task: Task) -> Overrides:
        given = dict(self.overrides.budget)
        if self.epochs is None or "steps" in given:
            return Overrides()
        if not task.examples:
            raise BenchError(
                f"{task.name} tells no number of examples for {self.epochs:g} epochs; "
                "set budget.steps"
            )
        budget = task.budgets.get(self.budget)
        batch = given.get("batch", budget.batch if budget else 1)
        updates = math.ceil(task.examples / int(batch))
        return Overrides(budget=(("steps", math.ceil(self.epochs * updates)),))


class Suite(BaseModel):
    """A named set of cells (`bench/suites/*.toml`).

    Attributes:
        grids: the file's tables `[[grid]]`, each completed by what the file says at the top; a
            file without such tables is one grid.
        settings: settings of the run, from the table `[trainer]`.
        average: tasks whose mean score the tables state, as a paper's average does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    description: str = ""
    grids: tuple[Grid, ...] = ()
    average: tuple[str, ...] = ()
    settings: RunSettings = DEFAULTS

    def narrowed(self, wanted: Mapping[str, Sequence[Any]]) -> Suite:
        """Returns the suite with what a user asks for in place of its own tasks, models, ….

        A value that some grid lists selects the grids that list it. A value that no grid lists
        goes into every grid that is left.

        Args:
            wanted: values by the name of a grid's field; an empty one asks for nothing.
        """
        grids = self.grids
        for field, values in wanted.items():
            if values:
                grids = _narrowed(grids, field, values)
        return self.model_copy(update={"grids": grids})

    def changed(self, overrides: Overrides, budget: str | None = None) -> Suite:
        """Returns the suite with overrides, and the name of a budget, in all its grids."""
        more: dict[str, Any] = {"budget": budget} if budget else {}
        grids = (
            grid.model_copy(update={"overrides": grid.overrides | overrides, **more})
            for grid in self.grids
        )
        return self.model_copy(update={"grids": tuple(grids)})


def _narrowed(grids: Sequence[Grid], field: str, values: Sequence[Any]) -> tuple[Grid, ...]:
    # No methods stand for all of them.
    own = [getattr(grid, field) or values for grid in grids]
    listed = {value for some in own for value in some}
    chosen = [tuple(v for v in values if v in some or v not in listed) for some in own]
    return tuple(
        grid.model_copy(update={field: some})
        for grid, some in zip(grids, chosen, strict=True)
        if some
    )


def suite_names() -> list[str]:
    """Returns the names of the suites that ship with the project."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Loads a shipped suite by name, or any TOML file by path.

    Raises:
        BenchError: there is no such suite, or the file is not a suite.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    try:
        fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = RunSettings.of(fields.pop("trainer", {}))
        shared = {key: fields.pop(key) for key in Grid.model_fields if key in fields}
        grids = [Grid(**(shared | table)) for table in fields.pop("grid", [{}])]
        return Suite(name=path.stem, settings=settings, grids=tuple(grids), **fields)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise BenchError(f"{path}: not a suite: {error}") from None
    except ValidationError as error:
        raise BenchError(f"{path}: not a suite: {first_error(error)}") from None
