"""Shows a run on standard error: what is at work, what is done, how long it will take.

A terminal gets one bar that changes. Anything else gets a line when a cell starts or ends, and one
every half minute in between.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tqdm import tqdm

from bench.core.cell import Cell
from bench.core.record import Record
from bench.core.tables import duration

LINE_S = 30.0
"""Seconds between two lines of a run that nobody watches in a terminal."""

REDRAW_S = 1.0
"""Seconds between two looks at the clock in a terminal."""

ENOUGH = 0.05
"""Fraction of a training after which its speed tells how long it takes."""


class _Training(NamedTuple):
    """How far a training is that was seen first at `began`, when `start` of it was done."""

    began: float
    start: float
    fraction: float = 0.0

    def rate(self, now: float) -> float | None:
        """Returns the fraction that a second trains; None until enough has been seen."""
        seen = self.fraction - self.start
        return seen / (now - self.began) if seen >= ENOUGH and now > self.began else None


class Progress:
    """The state of a run. Engines call it from several threads.

    Args:
        expected: the cells, with the seconds that each may take; None where nothing tells.
        slots: cells that run at a time.
    """

    def __init__(self, expected: Mapping[Cell, float | None], slots: int = 1) -> None:
        self.expected, self.slots = expected, slots
        self.began = time.monotonic()
        self.running: dict[Cell, tuple[float, str]] = {}
        self.training: dict[Cell, _Training] = {}
        self.finished: dict[Cell, float] = {}
        self.lock = threading.RLock()
        self.tty = sys.stderr.isatty()
        self.bar = tqdm(
            total=len(expected),
            disable=not self.tty,
            bar_format="{n_fmt}/{total_fmt} cells |{bar:20}| {elapsed}{postfix}",
        )

    def start(self, cell: Cell) -> None:
        """Notes that a cell has been handed out."""
        with self.lock:
            self.running[cell] = time.monotonic(), "starts"
            if not self.tty:
                self._write(f"{cell} starts")

    def step(self, cell: Cell, phase: str, done: int, total: int) -> None:
        """Notes that a cell is in a phase, at `done` of `total`."""
        with self.lock:
            began = self.running.get(cell, (time.monotonic(), ""))[0]
            self.running[cell] = began, f"{phase} {done}/{total}" if total > 1 else phase
            if phase == "train" and total:
                first = self.training.get(cell, _Training(time.monotonic(), done / total))
                self.training[cell] = first._replace(fraction=done / total)

    def done(self, record: Record) -> None:
        """Writes a cell's score or failure."""
        with self.lock:
            began, _ = self.running.pop(record.cell, (time.monotonic(), ""))
            self.finished[record.cell] = time.monotonic() - began
            self.bar.update()
            self._write(f"{record.cell}: {_outcome(record)}")

    def show(self) -> None:
        """Shows what is at work, and for how long still."""
        with self.lock:
            work = ", ".join(
                f"{cell.method} {cell.sparsity:g} {phase}"
                for cell, (_, phase) in self.running.items()
            )
            left = self.left()
            about = "" if left is None else f", about {duration(left)} left"
            if self.tty:
                self.bar.set_postfix_str(f"{about.lstrip(', ')} · {work}".lstrip(" ·"))
            elif self.running:
                elapsed = duration(time.monotonic() - self.began)
                self._write(f"{elapsed}{about}: {work}")

    def left(self) -> float | None:
        """Returns the seconds that may be left; None where nothing tells.

        Finished cells, and those well into their training, say how much slower or faster this run
        is than expected.
        """
        known = {cell: s for cell, s in self.expected.items() if s}
        if not known:
            return None
        now = time.monotonic()
        trainings = ((cell, self.training.get(cell)) for cell in self.running)
        rates = {cell: rate for cell, t in trainings if t and (rate := t.rate(now))}
        taken = self.finished | {cell: 1 / rate for cell, rate in rates.items()}
        both = [(taken[cell], s) for cell, s in known.items() if cell in taken]
        pace = sum(t for t, _ in both) / sum(s for _, s in both) if both else 1.0
        usual = sum(known.values()) / len(known)
        left = [0.0]
        for cell in self.expected:
            if cell in rates:
                left.append((1 - self.training[cell].fraction) / rates[cell])
            elif cell not in self.finished:
                spent = now - self.running[cell][0] if cell in self.running else 0.0
                left.append(max(pace * known.get(cell, usual) - spent, 0.0))
        return max(max(left), sum(left) / self.slots)

    def _write(self, text: str) -> None:
        line = f"[{len(self.finished)}/{len(self.expected)}] {text}"
        self.bar.write(line, file=sys.stderr)
        sys.stderr.flush()


@contextmanager
def progress(expected: Mapping[Cell, float | None]) -> Iterator[Progress]:
    """Yields the progress of a run, and shows it until the end."""
    shown, over = Progress(expected), threading.Event()

    def look() -> None:
        while not over.wait(REDRAW_S if shown.tty else LINE_S):
            shown.show()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join()
        shown.bar.close()


def _outcome(record: Record) -> str:
    if record.error is not None:
        return f"failed ({record.error.kind}): {record.error.message}"
    assert record.scores is not None
    assert record.cost is not None
    score, cost = record.scores, record.cost
    seconds = cost.train_s + cost.prune_s + cost.eval_s
    return f"{score.metric} {score.unit * score.value:.2f} in {seconds:.0f} s"
