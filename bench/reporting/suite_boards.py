"""The boards of each suite that has records: those of its tasks, and that of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.cell import Cell
from bench.core.record import Record
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning import registry
from bench.planning.suites import Grid, Suite, load_suite, suite_names
from bench.reporting.boards import Board, boards
from bench.reporting.mean_records import mean_records


@dataclass(frozen=True)
class SuiteBoards:
    """What a suite's pages show.

    Attributes:
        records: of its cells.
        means: a board for each model and budget, where the suite states a mean over its tasks.
        tasks: a board for each task, model and budget.
    """

    suite: Suite
    records: list[Record]
    means: list[Board]
    tasks: list[Board]

    @property
    def boards(self) -> list[Board]:
        """Returns all boards, those of the mean first."""
        return [*self.means, *self.tasks]


def by_suite(records: Sequence[Record], choices: Choices = NO_CHOICES) -> list[SuiteBoards]:
    """Returns the suites that have records, and `other` for cells of no suite."""
    found = []
    rest = list(records)
    for suite in map(load_suite, suite_names()):
        if inside := [r for r in records if belongs(r, suite, choices)]:
            found.append(_of(suite, inside, choices))
            rest = [r for r in rest if not belongs(r, suite, choices)]
    if rest:
        other = Suite(name="other", description="Cells that belong to no suite.")
        found.append(_of(other, rest, choices))
    return found


def _of(suite: Suite, records: list[Record], choices: Choices) -> SuiteBoards:
    means = boards(mean_records(records, suite.average), choices)
    return SuiteBoards(suite, records, means, boards(records, choices))


def belongs(record: Record, suite: Suite, choices: Choices = NO_CHOICES) -> bool:
    """Tells whether a cell is one of a suite's, whatever its method, level, seed, quantizer."""
    return any(_on_grid(record.cell, grid, choices) for grid in suite.grids)


def _on_grid(cell: Cell, grid: Grid, choices: Choices) -> bool:
    if not (cell.task in grid.tasks and cell.model in grid.models and cell.budget == grid.budget):
        return False
    given = {grid.overrides_of(cell.method, registry.task(cell.task), v) for v in (True, False)}
    own = cell.overrides
    if grid.tuned and choices.behind(cell):
        return any(own.budget == g.budget and not g.method for g in given)
    return any(own.method == g.method and own.budget == g.budget for g in given)
