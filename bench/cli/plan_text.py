"""What `sparsebench plan` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.cli.output import say
from bench.core.store import Store
from bench.core.tables import human
from bench.planning.plan import Planned


def show_plan(planned: Sequence[Planned], store: Store) -> None:
    """Prints each cell with its state, then the totals."""
    from bench.engine.estimate import Estimator, spoken, training_macs

    estimator = Estimator(store.records()[0])
    todo = [item for item in planned if item.todo]
    seconds = {item.cell: estimator.seconds(item.cell) for item in todo}
    macs = {item.cell: training_macs(item.cell) for item in todo}

    def about(times: Sequence[float | None], counts: Sequence[int | None]) -> str:
        known = [time for time in times if time is not None]
        counted = [count for count in counts if count]
        told = [f"{spoken(sum(known))}"] if known else []
        told += [f"{human(sum(counted))} training MACs"] if counted else []
        return f"about {', '.join(told)}" if told else ""

    for item in planned:
        cost = about([seconds[item.cell]], [macs[item.cell]]) if item.todo else ""
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {item.cell}  {cost}".rstrip())
    states = [item.state for item in planned]
    counts = counted(states) if len(set(states)) > 1 else ""
    total = about(list(seconds.values()), list(macs.values()))
    unknown = sum(time is None for time in seconds.values())
    total += f"; no record tells the time of {unknown}" if 0 < unknown < len(todo) else ""
    say(f"{len(todo)} of {len(planned)} cells to run{counts}{'; ' if total else ''}{total}")


def counted(states: Sequence[str]) -> str:
    """` (2 failed, 1 stale)`; nothing of nothing."""
    counts = Counter(states)
    return f" ({', '.join(f'{n} {state}' for state, n in counts.items())})" if counts else ""
