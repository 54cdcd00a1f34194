"""A board as a paper prints it: a method a row, a level of sparsity a column, then the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.core.cell import REFERENCE
from bench.core.collapse import collapsed
from bench.core.pattern import DENSE
from bench.core.record import Record, number
from bench.core.tables import duration, escape, gib, human, markdown, mib, percent
from bench.core.tuning import Choice
from bench.reporting import cost_tables
from bench.reporting.boards import Board, Column, counted, level_of, stands_apart
from bench.reporting.rows import (
    Link,
    Row,
    collapse_note,
    higher,
    mean,
    score,
    stale_note,
)
from bench.reporting.statistics import MIN_SEEDS

MAIN_LEGEND = f"""\
**bold**: the tests find no better row in the column. The paired tests are at 5 % over all
pairs of a column at once; ° marks a row that is not tested: it is alone, of an earlier version,
scored in other arithmetic, or has fewer than {MIN_SEEDS} seeds or other ones than the rest.
**scores**: the task's metric × 100 where higher is better, unscaled where lower is better; mean ±
sample standard deviation over seeds. *collapsed 1 of 5*: that many runs are no better than the
majority class or chance, within two standard errors; the mean without them stands beside it.
**columns**: zeros in the target weights, of any pattern that is not named. **time × dense**:
seconds to the pruned model / those of the dense one, on the same machine; one-shot methods include
the dense training that they start from, and a teacher's training is left out. **time**: the
seconds. **MACs**: multiply-adds of one
sequence; *effective* leaves out products with zero weights, *realizable* only what this hardware
can skip. **tuning**: seconds of the trials that chose the settings.
"""

Linked = Callable[[str], str]
"""Makes a method's name lead to its description."""


@dataclass(frozen=True)
class Entry:
    """A score of the main table.

    Attributes:
        records: that it is the mean of.
        best: whether the tests find no better row in the column.
        tested: whether the row was tested against the others of the column.
    """

    records: Sequence[Record]
    best: bool
    tested: bool

    @property
    def score(self) -> str:
        """Returns mean ± sample standard deviation, with a mark of a row that is not tested."""
        return score(self.records, 1) + ("" if self.tested else "°")

    @property
    def note(self) -> str:
        """Says how many runs have collapsed."""
        return collapse_note(self.records, 1).removeprefix(", ")


def grid(board: Board) -> tuple[list[str], list[tuple[str, list[Entry | None]]]]:
    """Returns the headings of the columns, and for each method its label and its entries.

    Dense and its like come first; then the scores decide, from the first column of zeros on.
    """
    entries: dict[str, dict[str, Entry]] = {}
    for column in board.columns:
        tested = [key for key, _ in column.tested]
        best = [key for key, _ in column.best] if len(tested) > 1 else []
        for key, records in column.rows:
            made = Entry(records, key in best, key in tested)
            entries.setdefault(board.labels[key], {})[column.heading] = made
    sign = -1 if higher(board.records) else 1

    def order(label: str) -> tuple[bool, list[float]]:
        means = [
            sign * mean(entries[label][column.heading].records)
            if column.heading in entries[label]
            else float("inf")
            for column in _by_size(board)
        ]
        return label != REFERENCE, means

    rows = [
        (label, [entries[label].get(column.heading) for column in board.columns])
        for label in sorted(entries, key=order)
    ]
    return [column.heading for column in board.columns], rows


def _by_size(board: Board) -> list[Column]:
    """Returns the columns, those with the most rows first."""
    return sorted(board.columns, key=lambda column: -len(column.rows))


def main_table(board: Board, link: Link, method: Linked = escape) -> str:
    """Returns the scores as Markdown, with a note, and a second table for rows that stand apart."""
    headings, rows = grid(board)
    cells = [
        [_named(label, method), *(_cell(entry, link) for entry in entries)]
        for label, entries in rows
    ]
    parts = [markdown(("method", *headings), cells)] if rows else []
    parts.append(_note(board))
    if outside := [row for row in board.rows if stands_apart(row[1])]:
        parts += ["At a sparsity of their own, so in no column and not tested:"]
        parts.append(_apart(board, outside, link, method))
    return "\n\n".join(parts)


def _cell(entry: Entry | None, link: Link) -> str:
    if entry is None:
        return ""
    text = link(entry.score, entry.records)
    text = f"**{text}**" if entry.best else text
    return f"{text}, {entry.note}" if entry.note else text


def cost_table(board: Board, trials: Callable[[str, Choice], str], method: Linked = escape) -> str:
    """Returns what each method costs, without columns that are empty.

    Costs are those of the largest column that has the method.
    """
    first: dict[str, tuple[str, Row]] = {}
    for column in _by_size(board):
        for key, records in column.rows:
            first.setdefault(board.labels[key], (column.heading, (key, records)))
    for key, records in board.rows:
        text = f"{percent(counted(records), 1)} %" if key[1] != DENSE else "dense"
        first.setdefault(board.labels[key], (text, (key, records)))
    own = {key for key, _ in board.own}
    header = ("method", "at", "trained %", "time × dense", "time", "peak memory", "stored",
              "MACs effective", "MACs realizable", "tuning")  # fmt: skip
    rows = [
        [_named(label, method), at, *_costs(board, row, trials)]
        for label, (at, row) in first.items()
        if row[0] in own
    ]
    kept = [i for i in range(len(header)) if i < 2 or any(row[i] != "–" for row in rows)]
    return markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def compute_note(board: Board) -> str:
    """Says how long the cells took, and the trials of settings, as if one ran at a time.

    The dense training that one-shot methods start from is counted once, with the dense row.
    Published rows beside own ones are not counted.
    """
    costs = [r.cost for _, records in board.own for r in records if r.cost]
    cells = sum(c.train_s + c.prune_s + c.eval_s for c in costs)
    many = "" if len(costs) == 1 else "s"
    text = f"{len(costs)} cell{many} took {duration(cells)}, one at a time"
    if chosen := [board.choices[key] for key, _ in board.own if key in board.choices]:
        trials = sum(choice.seconds for choice in chosen)
        text += f"; the trials that chose their settings took {duration(trials)}"
    return f"{text}."


def written_texts(board: Board) -> str:
    """Returns what each row's first model wrote for the task's first input; nothing elsewhere.

    The input and its references are the data set's, so they stand in the cells' logs alone.
    """
    firsts = [(key, min(records, key=lambda r: r.cell.seed)) for key, records in board.rows]
    rows = [
        [escape(board.labels[key]), escape(level_of(key)), escape(record.scores.written)]
        for key, record in firsts
        if record.scores and record.scores.written
    ]
    if not rows:
        return ""
    return "\n\n".join(
        (
            "What each model wrote for the first input of the test data (the lowest seed):",
            markdown(("method", "level", "text"), rows),
        )
    )


def _costs(board: Board, row: Row, trials: Callable[[str, Choice], str]) -> list[str]:
    key, records = row
    first = records[0]
    assert first.params is not None
    choice = board.choices.get(key)
    dense = board.dense[1] if board.dense else None
    relative = cost_tables.relative_time(records, dense) if dense else None
    seconds = cost_tables.absolute_time(records, dense) if dense else None
    stored = number(first, "bytes.stored")
    macs = [number(first, f"macs.{kind}") for kind in ("effective", "realizable")]
    return [
        percent(first.params.trainable.body / first.params.total),
        "–" if relative is None else f"{relative:.2f}",
        "–" if seconds is None else f"{seconds:.0f} s",
        gib(max(r.cost.peak_bytes for r in records if r.cost)),
        "–" if stored is None else mib(int(stored)),
        *("–" if value is None else human(value) for value in macs),
        trials(duration(choice.seconds), choice) if choice else "–",
    ]


def _apart(board: Board, rows: Sequence[Row], link: Link, method: Linked) -> str:
    table = []
    for key, records in rows:
        table.append(
            [
                _named(board.labels[key], method),
                escape(level_of(key)),
                percent(counted(records), 1),
                link(score(records, 1), records) + collapse_note(records, 1),
            ]
        )
    return markdown(("method", "asked for", "zeros %", "score"), table)


def _named(label: str, method: Linked) -> str:
    """Returns a row's name, of which the method's is linked."""
    first, _, rest = label.partition(" ")
    return " ".join(filter(None, (method(first), escape(rest))))


def _note(board: Board) -> str:
    """Says what the scores are, how rows are sorted, and how many pairs were told apart."""
    first = board.records[0]
    assert first.scores is not None
    assert first.budget is not None
    seeds = sorted({len(records) for _, records in board.rows})
    parts = [
        f"{first.scores.metric.capitalize()} on {first.scores.n:,} items of `{first.cell.task}`, "
        f"{first.cell.model}, {first.budget.steps} steps of {first.budget.batch}; mean ± sd of "
        f"{' or '.join(map(str, seeds))} seeds. Sorted by the columns with the most rows."
    ]
    tested = [column for column in board.columns if len(column.tested) > 1]
    if tested:
        pairs = "; ".join(f"{c.told_apart} at {c.heading}" for c in tested)
        parts.append(
            f"**Bold**: the tests find no better row in the column. Pairs told apart: {pairs}."
        )
    if any(len(column.tested) < len(column.rows) for column in board.columns):
        parts.append("°: not tested.")
    if any(map(collapsed, board.records)):
        parts.append(
            "*Collapsed* runs are no better than chance (the majority class), within two standard "
            "errors."
        )
    return " ".join([*parts, *stale_note(board.records)])
