"""Lists the cells of a suite, the state of each, and those that will run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from bench.api import Method
from bench.core.cell import REFERENCE, Cell
from bench.core.errors import BenchError, first_error
from bench.core.pattern import Pattern, default_of
from bench.core.store import State, Store
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning import registry
from bench.planning.job import Job
from bench.planning.suites import Grid, Suite


@dataclass(frozen=True)
class Planned:
    """A job, the state of its record, and whether it will run (`todo`)."""

    job: Job
    state: State
    todo: bool


def expand(suite: Suite, explicit: bool = False, choices: Choices = NO_CHOICES) -> list[Job]:
    """Resolves the suite's cells, grid by grid, baselines first.

    Args:
        suite: its grids.
        explicit: whether the user named the patterns; then a method that makes none of them is
            an error.
        choices: settings that were chosen for methods, which the suite may ask for.

    Raises:
        BenchError: a name is unknown, or a parameter or a field of a cell is not allowed.
    """
    cells = [cell for grid in suite.grids for cell in _cells(grid, explicit, choices)]
    # Recovery is measured against unquantized weights.
    references = [c.dense for c in cells if c.quantization and c.method == REFERENCE]
    return [Job.resolve(cell) for cell in dict.fromkeys([*references, *cells])]


def _cells(grid: Grid, explicit: bool, choices: Choices) -> Iterator[Cell]:
    wanted = grid.methods or tuple(registry.names("method"))
    for name in dict.fromkeys([REFERENCE, *grid.baselines, *wanted]):
        asked = name in wanted
        levels = levels_of(
            registry.method(name), grid.patterns, grid.sparsities, explicit and asked
        )
        for task in grid.tasks:
            overrides = grid.overrides_of(name, registry.task(task), asked)
            for model, (pattern, sparsity), seed in product(grid.models, levels, grid.seeds):
                cell = make_cell(
                    task=task,
                    model=model,
                    method=name,
                    pattern=pattern,
                    sparsity=sparsity,
                    seed=seed,
                    budget=grid.budget,
                    overrides=overrides,
                )
                yield with_choice(cell, choices) if grid.tuned else cell


def with_choice(cell: Cell, choices: Choices) -> Cell:
    """Returns the cell with the settings that were chosen for its method, if it has none.

    A choice of an earlier version of the method does not count.
    """
    choice = choices.of(cell)
    if cell.overrides.method or choice is None:
        return cell
    if choice.version != registry.method(cell.method).version:
        return cell
    return cell.model_copy(update={"overrides": cell.overrides | choice.settings})


def levels_of(
    method: type[Method],
    patterns: Sequence[Pattern],
    sparsities: Sequence[float],
    explicit: bool = False,
) -> list[tuple[Pattern, float]]:
    """Returns the (pattern, sparsity) points of a method; dense and N:M fix their own sparsity.

    Args:
        method: the method's class.
        patterns: wanted patterns. If the method makes none of them, its first one is taken.
        sparsities: wanted sparsities (fractions), for patterns that do not fix one.
        explicit: whether to refuse a method that makes none of the patterns.

    Raises:
        BenchError: the method makes none of the patterns, and `explicit` is true.
    """
    makes = [pattern for pattern in patterns if pattern.made_by(method.patterns)]
    if explicit and not makes:
        refused = ", ".join(map(str, patterns))
        raise BenchError(f"method {method.name} makes {', '.join(method.patterns)}, not {refused}")
    points: list[tuple[Pattern, float]] = []
    for pattern in makes or [default_of(method.patterns[0])]:
        free = pattern.sparsity is None
        points += [(pattern, s) for s in (sparsities if free else (pattern.sparsity or 0.0,))]
    return points


def make_cell(**fields: Any) -> Cell:
    """Makes a cell from its fields.

    Raises:
        BenchError: a field is not allowed; one line names it.
    """
    try:
        return Cell(**fields)
    except ValidationError as error:
        raise BenchError(first_error(error)) from None


def plan(
    jobs: Sequence[Job], store: Store, rerun: bool = False, retry_failed: bool = True
) -> list[Planned]:
    """Returns each job with its state, dense ones first.

    Args:
        jobs: the wanted jobs.
        store: the existing records.
        rerun: whether to run done cells again.
        retry_failed: whether to run failed cells again.
    """
    kept = {"done"} | (set() if retry_failed else {"failed"})
    planned = []
    for job in sorted(jobs, key=lambda job: job.cell.method != REFERENCE):
        state = store.state(job.cell, job.versions)
        planned.append(Planned(job, state, rerun or state not in kept))
    return planned
