"""The table of a suite's tasks: scores on each of them and the mean, as papers print it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from bench.core.record import Record
from bench.core.tables import escape, markdown, printable
from bench.reporting.mean_records import by_table, counted_tasks
from bench.reporting.rows import NAME, Link, Row, group_of, mean, name, ordered, unlinked


def task_tables(
    records: Sequence[Record],
    average: Sequence[str],
    render: Callable[..., str],
    link: Link = unlinked,
) -> list[str]:
    """Returns a table a model and budget: each row's scores on the tasks, and their mean.

    A row has a mean where it has every task that counts, on the same seeds.
    """
    clean = escape if render is markdown else printable
    parts = []
    for inside in by_table(records, average):
        shown = [task for task in average if any(r.cell.task == task for r in inside)]
        if len(shown) < 2:
            continue
        tasks, left_out = counted_tasks(inside, average)
        _, model, budget, overrides = group_of(inside[0])
        about = [f"mean of {len(tasks)} tasks", model, f"budget {budget}"]
        about += [f"{key}={value}" for key, value in overrides]
        title = " · ".join(about)
        header = [clean(f"{t} (not counted)" if t in left_out else t) for t in shown]
        rows = [
            [*name(row[0], clean), *_scores(row, shown, tasks, link)] for row in ordered(inside)
        ]
        heading = f"## {escape(title)}" if render is markdown else printable(title)
        parts.append(f"{heading}\n\n{render((*NAME, *header, 'mean'), rows)}")
    return parts


def _scores(row: Row, shown: Sequence[str], tasks: Sequence[str], link: Link) -> list[str]:
    """Returns each task's mean score, and the mean of those of `tasks` on equal seeds."""
    by_task = {task: [r for r in row[1] if r.cell.task == task] for task in shown}
    means = {t: 100 * mean(found) for t, found in by_task.items() if found}
    each = [link(f"{means[t]:.2f}", by_task[t]) if t in means else "–" for t in shown]
    seeds = {tuple(sorted(r.cell.seed for r in by_task.get(t, ()))) for t in tasks}
    whole = set(tasks) <= set(means) and len(seeds) == 1
    return [*each, f"{statistics.fmean(means[t] for t in tasks):.2f}" if whole and tasks else "–"]
