"""What `sparsebench plan` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.cli.output import say

if TYPE_CHECKING:
    from bench.cli.shelves import Shelves
    from bench.core.cell import Cell
    from bench.core.store import Store
    from bench.planning.plan import Planned


def show_plan(planned: Sequence[Planned], store: Store | Shelves) -> None:
    """Prints each cell's state, estimated time and training MACs, then the sums."""
    todo = [item.job for item in planned if item.todo]
    seconds: dict[Cell, float | None] = {}
    macs: dict[Cell, int | None] = {}
    if todo:  # counting loads torch and transformers
        from bench.engine.estimate import Estimator

        estimator = Estimator(store.records()[0])
        seconds = {job.cell: estimator.seconds(job) for job in todo}
        macs = {job.cell: estimator.training_macs(job) for job in todo}
    for item in planned:
        cell = item.job.cell
        cost = _about([seconds[cell]], [macs[cell]]) if item.todo else ""
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {cell}  {cost}".rstrip())
    states = [item.state for item in planned]
    counts = counted(states) if len(set(states)) > 1 else ""
    total = _about(list(seconds.values()), list(macs.values()))
    unknown = sum(time is None for time in seconds.values())
    if todo and estimator.elsewhere:
        total += "; times are of another kind of machine"
    total += f"; no record tells the time of {unknown}" if 0 < unknown < len(todo) else ""
    say(f"{len(todo)} of {len(planned)} cells to run{counts}{'; ' if total else ''}{total}")


def _about(times: Sequence[float | None], macs: Sequence[int | None]) -> str:
    from bench.core.tables import duration, human

    known = [time for time in times if time is not None]
    counts = [count for count in macs if count]
    parts = [duration(sum(known))] if known else []
    parts += [f"{human(sum(counts))} training MACs"] if counts else []
    return f"about {', '.join(parts)}" if parts else ""


def counted(states: Sequence[str]) -> str:
    """Counts states: ` (2 failed, 1 stale)`; an empty text where there are none."""
    counts = Counter(states)
    return f" ({', '.join(f'{n} {state}' for state, n in counts.items())})" if counts else ""
