"""What was tried to choose a method's settings, and what was chosen; one file a choice.

A choice belongs to a method, pattern and sparsity on a model and a family of tasks. Trials are
scored on the select slice, a part of the training data, under a seed that no table reports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from bench.core.cell import Cell, canonical
from bench.core.errors import BenchError, first_error
from bench.core.files import disk_error, write_atomic
from bench.core.overrides import Overrides, OverridesField, Scalar
from bench.core.pattern import PatternField
from bench.core.record_parts import Code, Count, Finite, Fraction, Part, Seconds, Text
from bench.core.store import path_of

MOST_SETTINGS = 8
"""Settings that a method may try for one choice. No method sees more trials than another."""

MISS = 0.01
"""How far counted zeros may be from the sparsity that was asked for."""

TUNING_SEED = 0
"""The seed of all trials; records with it are never published."""

TRIAL_SHARE = 0.5
"""Of a row's updates: what a trial of a method that trains takes, with its schedule."""

FOLDER = "tuning"
"""Where the choices lie in a tree of records."""


class Trial(Part):
    """One setting, scored once on the select slice of each task.

    Attributes:
        settings: parameters that differ from the method's defaults.
        scores: the primary metric by task; empty where a run failed.
        value: their mean.
        seconds: training, pruning and scoring, all tasks together.
        sparsity: counted zeros, the mean over the tasks.
        missed: whether that is not the sparsity that was asked for, by more than `MISS`.
        collapsed: whether it is no better than chance or the majority class.
        error: why it failed.
    """

    settings: dict[Text, Scalar]
    scores: dict[Text, Finite] = {}
    value: Finite | None = None
    seconds: Seconds = 0.0
    sparsity: Fraction | None = None
    missed: bool = False
    collapsed: bool = False
    error: Text = ""


class TunedOn(Part):
    """A task that trials were scored on.

    Attributes:
        version: of the task.
        budget: overrides of the row's budget.
        steps: updates of a trial; None where the method does not train.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    version: int
    budget: OverridesField = Overrides()
    steps: Count | None = None


class Choice(Part):
    """The trials of a method at one pattern and sparsity, and the settings that won.

    Attributes:
        family: first part of the tasks' names: `glue`, `reviews`.
        tasks: the tasks that trials were scored on.
        version: of the method.
        budget: name of the budget.
        best: index of the chosen trial.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    method: Text
    pattern: PatternField
    sparsity: Finite
    model: Text
    family: Text
    tasks: dict[Text, TunedOn]
    version: int
    budget: Text
    seed: Count
    higher_is_better: bool
    trials: list[Trial] = Field(min_length=1, max_length=MOST_SETTINGS)
    best: Count
    code: Code
    env: dict[str, Scalar] = {}
    time: Text

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, arbitrary_types_allowed=True
    )

    @model_validator(mode="after")
    def _has_a_best(self) -> Choice:
        if self.best >= len(self.trials):
            raise ValueError(f"best is {self.best}, and there are {len(self.trials)} trials")
        return self

    @property
    def settings(self) -> Overrides:
        """The chosen settings, as overrides of a cell."""
        return Overrides.of(self.trials[self.best].settings)

    def fits(self, cell: Cell) -> bool:
        """Tells whether the choice is for a cell: its row, its model and its family of tasks.

        A task that the trials were scored on must have the same budget. Other tasks of the family
        take the choice as it is.
        """
        row = (self.method, self.pattern, self.sparsity, self.model, self.budget)
        if row != (cell.method, cell.pattern, cell.sparsity, cell.model, cell.budget):
            return False
        on = self.tasks.get(cell.task)
        if on is not None:
            return on.budget == cell.overrides.of_budget
        return self.family == family_of(cell.task)

    @property
    def seconds(self) -> float:
        """What all trials took."""
        return sum(trial.seconds for trial in self.trials)

    def to_json(self) -> str:
        """Returns the file's text."""
        tree = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def family_of(task: str) -> str:
    """Returns the family of a task by its name: `glue/rte` → `glue`."""
    return task.partition("/")[0]


def best_of(trials: Iterable[Trial], higher_is_better: bool) -> int:
    """Returns the index of the trial that wins.

    A trial that failed, collapsed or missed its sparsity loses against any that did not. Among
    equal ones the first wins, which is the default.
    """
    sign = 1 if higher_is_better else -1

    def merit(trial: Trial) -> tuple[bool, bool, bool, float]:
        done = trial.value is not None
        return (
            done,
            not trial.collapsed,
            not trial.missed,
            sign * trial.value if trial.value is not None else 0.0,
        )

    merits = [merit(trial) for trial in trials]
    return merits.index(max(merits))


class Choices:
    """The choices in trees of records.

    Args:
        roots: trees; an earlier one goes before a later one.
    """

    def __init__(self, *roots: Path) -> None:
        paths = [path for root in roots for path in sorted((root / FOLDER).rglob("*.json"))]
        self._found = [(path, read(path)) for path in paths]

    @property
    def all(self) -> list[Choice]:
        """The choices, those of an earlier tree first."""
        return [choice for _, choice in self._found]

    def path(self, choice: Choice) -> Path:
        """Returns the file of one of these choices."""
        return next(path for path, found in self._found if found is choice)

    def of(self, cell: Cell) -> Choice | None:
        """Returns the first choice that fits a cell; None if there is none."""
        return next((choice for choice in self.all if choice.fits(cell)), None)

    def behind(self, cell: Cell) -> Choice | None:
        """Returns the choice that a cell's parameters come from, defaults that won included."""
        choice = self.of(cell)
        if choice is None or choice.settings.method != cell.overrides.method:
            return None
        return choice


NO_CHOICES = Choices()


def path_of_choice(root: Path, choice: Choice) -> Path:
    """Returns where a choice lies in a tree of records."""
    given = {task: on.budget.flat for task, on in choice.tasks.items() if on.budget}
    cell = Cell(
        task=choice.family,
        model=choice.model,
        method=choice.method,
        pattern=choice.pattern,
        sparsity=choice.sparsity,
    )
    family, model, method, level = path_of(cell).parent.parts
    if choice.budget != "default" or given:
        level += f"-{hashlib.sha256(canonical([choice.budget, given])).hexdigest()[:6]}"
    return root / FOLDER / family / model / method / f"{level}.json"


def write(root: Path, choice: Choice) -> Path:
    """Writes a choice into a tree of records and returns its path.

    Raises:
        BenchError: kind `disk`.
    """
    path = path_of_choice(root, choice)
    try:
        write_atomic(path, choice.to_json())
    except OSError as error:
        raise disk_error(path, error) from error
    return path


def read(path: Path) -> Choice:
    """Reads and validates a choice.

    Raises:
        BenchError: the file holds none; the line names it.
    """
    try:
        return Choice.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BenchError(f"{path}: corrupt choice of settings: {first_error(error)}") from None
