"""Means over the tasks of a suite, as a paper's average."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from bench.core.record import Record
from bench.core.tables import escape, markdown, printable
from bench.reporting.rows import NAME, Link, group_of, mean, name, ordered, unlinked


def averages(
    records: Sequence[Record],
    average: Sequence[str],
    render: Callable[..., str],
    link: Link = unlinked,
) -> list[str]:
    """Returns a table a model and budget: scores of the tasks of `average`, and their mean.

    A row has a mean where it has every task, on the same seeds.
    """
    clean = escape if render is markdown else printable
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        if record.cell.task in average:
            groups[group_of(record)[1:]].append(record)
    parts = []
    for (model, budget, overrides), inside in sorted(groups.items(), key=lambda item: str(item[0])):
        tasks = [name for name in average if any(r.cell.task == name for r in inside)]
        if len(tasks) < 2:
            continue
        about = [f"mean of {len(average)} tasks", model, f"budget {budget}"]
        about += [f"{key}={value}" for key, value in overrides]
        title = " · ".join(about)
        rows = [
            [*name(key, clean), *_task_means(of_row, tasks, len(average), link)]
            for key, of_row in ordered(inside)
        ]
        header = (*NAME, *map(clean, tasks), "mean")
        heading = f"## {escape(title)}" if render is markdown else printable(title)
        parts.append(f"{heading}\n\n{render(header, rows)}")
    return parts


def _task_means(
    records: Sequence[Record], tasks: Sequence[str], complete: int, link: Link
) -> list[str]:
    """Returns each task's mean score, and their mean over `complete` tasks on equal seeds."""
    by_task = {task: [r for r in records if r.cell.task == task] for task in tasks}
    means = {t: 100 * mean(found) for t, found in by_task.items() if found}
    seeds = {tuple(sorted(r.cell.seed for r in found)) for found in by_task.values()}
    whole = len(means) == complete and len(seeds) == 1
    overall = f"{statistics.fmean(means.values()):.2f}" if whole else "–"
    each = [link(f"{means[t]:.2f}", by_task[t]) if t in means else "–" for t in tasks]
    return [*each, overall]
