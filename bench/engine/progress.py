"""Shows the progress of a run on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from bench.core.cell import Cell
from bench.core.record import Record


class Bars:
    """A bar of cells and a bar of the running cell's steps; without a terminal only lines."""

    def __init__(self, cells: int) -> None:
        self.tty = sys.stderr.isatty()
        self.cells = tqdm(total=cells, desc="cells", unit="cell", disable=not self.tty, position=0)
        self.steps = tqdm(desc="steps", unit="step", leave=False, disable=not self.tty, position=1)
        self.count, self.total = 0, cells

    def step(self, cell: Cell, phase: str, done: int, total: int) -> None:
        """Moves the bar of steps to `done` of `total`."""
        self.steps.set_description_str(f"{cell.method} {cell.sparsity:g} {phase}", refresh=False)
        self.steps.total, self.steps.n = total, done
        self.steps.refresh()

    def done(self, record: Record) -> None:
        """Moves the bar of cells and writes the cell's score or failure."""
        self.count += 1
        self.cells.update()
        if record.error is not None:
            text = f"failed ({record.error.kind}): {record.error.message}"
        else:
            assert record.scores is not None
            assert record.cost is not None
            score = record.scores
            text = f"{score.metric} {score.unit * score.value:.2f}"
            text += f" in {record.cost.train_s + record.cost.prune_s + record.cost.eval_s:.0f} s"
        line = f"[{self.count}/{self.total}] {record.cell}: {text}"
        self.cells.write(line, file=sys.stderr)


@contextmanager
def bars(cells: int) -> Iterator[Bars]:
    """Yields bars for a run of `cells` cells and closes them at the end."""
    both = Bars(cells)
    try:
        yield both
    finally:
        both.steps.close()
        both.cells.close()
