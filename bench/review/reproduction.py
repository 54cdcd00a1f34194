"""Says whether a score of this machine agrees with the published one.

The tolerance is the gate's, which `verify` uses too: as far as seeds differ. Runs that have not
collapsed are held to published ones that have not: next to a collapsed run any score would do.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bench.core.collapse import collapsed
from bench.core.record import Record, verified
from bench.core.store import path_of
from bench.core.tables import printable
from bench.planning import registry
from bench.reporting.rows import method_name
from bench.review import gate
from bench.review.gate import BaselineRow, Spread

_FREE = ("bytes.formats", "macs.realizable", "seeds ")
"""Changes that contradict nothing: training or the hardware decides them, or seeds are new."""


def comparisons(own: Iterable[Record], published: Iterable[Record]) -> list[str]:
    """Returns a line for each row of `own` that is also published.

    Args:
        own: done records of this machine.
        published: done records of the project.
    """
    theirs = _by_row(record for record in published if verified(record))
    old = {name for name, found in theirs.items() if any(map(registry.is_stale, found))}
    known = gate.rows_of(record for found in theirs.values() for record in found)
    spreads = gate.spreads({name: row for name, row in known.items() if name not in old})
    told = []
    for name, found in _by_row(own).items():
        if name in known:
            alike = _alike(found, theirs[name])
            row, published_row = gate.rows_of(found)[name], gate.rows_of(alike)[name]
            fallen = len(theirs[name]) - len(alike)
            text = _scores(found[0], row, published_row, fallen)
            if name in old:
                text += ", of an earlier version: not judged"
            else:
                text += f", {_verdict(found[0], row, published_row, spreads)}"
            told.append(text)
    return told


def _alike(own: Sequence[Record], published: Sequence[Record]) -> list[Record]:
    """Returns the published runs to judge by: without collapsed ones, if no own run collapsed."""
    working = [record for record in published if not collapsed(record)]
    return working if working and not any(map(collapsed, own)) else list(published)


def _by_row(records: Iterable[Record]) -> dict[str, list[Record]]:
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[str(path_of(record.cell).parent)].append(record)
    return rows


def _scores(record: Record, own: BaselineRow, published: BaselineRow, fallen: int) -> str:
    """Names the row; then its score here and the published mean ± sd without `fallen` runs."""
    assert record.scores is not None  # of a done record
    cell, unit = record.cell, record.scores.unit
    names = [cell.task, cell.model, method_name(cell.method, cell.overrides)]
    names += [cell.pattern.at(cell.sparsity), str(cell.overrides.shared)]
    here, there = statistics.fmean(own.score), statistics.fmean(published.score)
    seeds = len(published.score)
    spread = f" ± {unit * statistics.stdev(published.score):.2f}" if seeds > 1 else ""
    over = "1 seed" if seeds == 1 else f"{seeds} seeds"
    over += f"; {fallen} more collapsed" if fallen else ""
    name = printable(" ".join(filter(None, names)))
    return f"{name}: {unit * here:.2f} here, published {unit * there:.2f}{spread} ({over})"


def _verdict(
    record: Record, own: BaselineRow, published: BaselineRow, spreads: dict[str, Spread]
) -> str:
    """Says whether a row's score is inside the tolerance, and which counts differ."""
    assert record.scores is not None  # of a done record
    name = str(path_of(record.cell).parent)
    changes = gate.changes({name: published}, {name: own})
    moved = [c.what for c in changes if c.fails and not c.what.startswith(_FREE)]
    if other := [what for what in moved if what == "scored on" or what.startswith("data.")]:
        return f"not judged: {', '.join(other)} differs"
    seeds, new = len(published.seeds), len(own.seeds)
    there = statistics.fmean(published.score)
    free = gate.tolerance(published, spreads[gate.task_and_model(name)], there, seeds, new)
    inside = abs(statistics.fmean(own.score) - there) <= free
    text = f"{'inside' if inside else 'outside'} the tolerance of {record.scores.unit * free:.2f}"
    counts = [what for what in moved if what != published.metric]
    return f"{text}; other counts: {', '.join(counts)}" if counts else text
