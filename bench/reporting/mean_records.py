"""Records of the mean over a suite's tasks, which tables, tests and figures take like others.

A row's mean is over all tasks that count, on one seed. Tasks are blocks of the test: they are these
and no sample of others, so noise is of seeds and of the items within tasks. With the items x of
task t, n_t of them, T tasks and N items in all, the items of the mean are

    v + w_t·(x − x̄_t),   v = Σ x̄_t / T,   w_t = √(N(N − 1) / (n_t(n_t − 1))) / T

Their mean is v. Taken as one sample of N they have the variance of the stratified mean,
Σ s_t² / (n_t·T²), so that `bench.reporting.paired` tests them as it tests those of one task.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bench.core.cell import REFERENCE
from bench.core.collapse import collapsed
from bench.core.overrides import Scalar
from bench.core.record import Record, verified
from bench.core.record_parts import Cost, Macs, ScoresPart
from bench.core.tuning import family_of
from bench.reporting.paired import basis_of, items_of
from bench.reporting.rows import Key, group_of, ordered


class MeanRecord(Record):
    """What several tasks' records of one row and seed come to: mean scores, total costs."""

    averaged: tuple[Record, ...]

    @property
    def members(self) -> tuple[Record, ...]:
        """The records that it is the mean of."""
        return self.averaged


def mean_records(records: Iterable[Record], average: Sequence[str]) -> list[MeanRecord]:
    """Returns a record for each row and seed that has all tasks that count.

    Args:
        records: done records.
        average: the tasks of the suite's mean. Those on which dense does not work do not count.
    """
    found = []
    for inside in by_table(records, average):
        tasks, left_out = counted_tasks(inside, average)
        if len(tasks) < 2:
            continue
        for _, of_row in ordered(inside):
            by_seed: dict[int, dict[str, Record]] = defaultdict(dict)
            for record in of_row:
                by_seed[record.cell.seed][record.cell.task] = record
            found += [
                _mean_of([by_task[task] for task in tasks], left_out)
                for _, by_task in sorted(by_seed.items())
                if set(tasks) <= set(by_task)
            ]
    return found


def counted_tasks(records: Sequence[Record], average: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the tasks that count for the mean, and those that dense itself does not learn.

    Where a dense run is no better than chance, no method has anything to lose. Runs that someone
    sent in decide nothing.
    """
    dense = [r for r in records if r.cell.method == REFERENCE and verified(r)]
    failing = {r.cell.task for r in dense if collapsed(r)}
    return [t for t in average if t not in failing], [t for t in average if t in failing]


def by_table(records: Iterable[Record], average: Sequence[str]) -> list[list[Record]]:
    """Returns the records of the tasks of `average`, those of a model and budget together."""
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        if record.cell.task in average:
            groups[group_of(record)[1:]].append(record)
    return [groups[key] for key in sorted(groups, key=str)]


def _mean_of(members: Sequence[Record], left_out: Sequence[str]) -> MeanRecord:
    """Returns the mean of one record a task; what tasks have in common is the first one's."""
    first, tasks = members[0], [r.cell.task for r in members]
    families = {family_of(task) for task in tasks}
    cell = first.cell.model_copy(
        update={"task": f"{families.pop()}/mean" if len(families) == 1 else "mean"}
    )
    budgets = [r.budget for r in members if r.budget]
    zeros = [r.sparsity for r in members if r.sparsity]
    macs = [r.macs for r in members if r.macs]
    data = [r.data for r in members if r.data]
    subsets = [f"{task}: {d.subset}" for task, d in zip(tasks, data, strict=True) if d.subset]
    fields: dict[str, Any] = {name: getattr(first, name) for name in Record.model_fields}
    fields |= {
        "cell": cell,
        "key": cell.key,
        "budget": replace(budgets[0], steps=sum(b.steps for b in budgets)),
        "scores": _scores(members, left_out),
        "sparsity": zeros[0].model_copy(
            update={"overall": statistics.fmean(z.overall for z in zeros)}
        ),
        "macs": {kind: _rounded([getattr(m, kind) for m in macs]) for kind in Macs.model_fields},
        "cost": _total([r.cost for r in members if r.cost]),
        "data": data[0].model_copy(
            update={
                "fingerprint": " ".join(d.fingerprint for d in data),
                "subset": "; ".join(subsets),
            }
        ),
        "env": _environment([r.env for r in members]),
        "speed": [],
        "report": {},
    }
    return MeanRecord(**fields, averaged=tuple(members))


def _scores(members: Sequence[Record], left_out: Sequence[str]) -> ScoresPart:
    scores = {r.cell.task: r.scores for r in members if r.scores}
    named = ", ".join(f"{task} ({s.metric})" for task, s in scores.items())
    notes = [
        f"Mean of {named}; steps and seconds are those of all together. A run has collapsed if it "
        "has on one of them."
    ]
    if left_out:
        names = ", ".join(left_out)
        notes.append(f"Not counted, since dense itself is no better than chance there: {names}.")
    return ScoresPart(
        metric=f"mean of {len(scores)} tasks",
        higher_is_better=all(s.higher_is_better for s in scores.values()),
        value=statistics.fmean(s.value for s in scores.values()),
        all={task: s.value for task, s in scores.items()},
        n=sum(s.n for s in scores.values()),
        items=_items(list(scores.values())),
        notes=notes,
    )


def _items(scores: Sequence[ScoresPart]) -> list[float]:
    """Returns the items of the mean; none where a task's items do not give its score."""
    if any(basis_of(s) != "mean" or s.n < 2 for s in scores):
        return []
    value, total = statistics.fmean(s.value for s in scores), sum(s.n for s in scores)
    found: list[float] = []
    for s in scores:
        x = items_of(s)
        weight = math.sqrt(total * (total - 1) / (s.n * (s.n - 1))) / len(scores)
        found += (value + weight * (x - x.mean())).tolist()
    return found


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(
        train_s=sum(c.train_s for c in costs),
        prune_s=sum(c.prune_s for c in costs),
        eval_s=sum(c.eval_s for c in costs),
        dense_s=sum(c.dense_s for c in costs),
        peak_bytes=max(c.peak_bytes for c in costs),
    )


def _rounded(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known)) if len(known) == len(values) else None


def _environment(found: Sequence[dict[str, Scalar]]) -> dict[str, Scalar]:
    """Returns what is the same for all, and of the rest a list in the order of the tasks.

    So times compare where each task ran on the same machine for both rows.
    """
    names = {name for env in found for name in env}
    merged: dict[str, Scalar] = {}
    for name in sorted(names):
        values = [env.get(name, "?") for env in found]
        merged[name] = values[0] if len(set(values)) == 1 else ", ".join(map(str, values))
    return merged
