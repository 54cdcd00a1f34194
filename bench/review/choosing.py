"""Chooses the settings of a search from the records of its trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench.core import provenance
from bench.core.cell import Cell
from bench.core.collapse import collapsed
from bench.core.overrides import Setting
from bench.core.record import Record
from bench.core.tuning import MISS, TUNING_SEED, Choice, Trial, TunedOn, best_of, family_of
from bench.planning.trials import Search

Records = Mapping[Cell, Record | None]


def choice_of(search: Search, records: Records) -> Choice | None:
    """Returns what the trials say; None while one of them is missing, or if all have failed.

    Args:
        search: the trials.
        records: their records, done or failed, by cell.
    """
    trials = []
    for setting, jobs in zip(search.settings, search.jobs, strict=True):
        found = [record for job in jobs if (record := records.get(job.cell)) is not None]
        if len(found) < len(jobs) or any(r.error and r.error.kind == "offline" for r in found):
            return None
        trials.append(_trial(setting, found, search.cell.sparsity))
    if all(trial.error for trial in trials):
        return None
    first, cell = search.jobs[0][0], search.cell
    return Choice(
        method=cell.method,
        pattern=cell.pattern,
        sparsity=cell.sparsity,
        model=cell.model,
        family=family_of(cell.task),
        tasks={
            row.cell.task: TunedOn(
                version=row.versions.task,
                budget=row.cell.overrides.of_budget,
                steps=trial.budget.steps if trial.trains else None,
            )
            for row, trial in zip(search.rows, search.jobs[0], strict=True)
        },
        version=first.versions.method,
        budget=cell.budget,
        seed=TUNING_SEED,
        higher_is_better=first.task.higher_is_better,
        trials=trials,
        best=best_of(trials, first.task.higher_is_better),
        code=provenance.code(first.method),
        env=provenance.env(),
        time=provenance.now(),
    )


def _trial(setting: Setting, records: Sequence[Record], sparsity: float) -> Trial:
    failures = [r.error.message for r in records if r.error]
    if failures:
        return Trial(settings=dict(setting), error=failures[0])
    scores = {r.cell.task: r.scores.value for r in records if r.scores}
    costs = [r.cost for r in records if r.cost]
    counted = statistics.fmean(r.sparsity.overall for r in records if r.sparsity)
    return Trial(
        settings=dict(setting),
        scores=scores,
        value=statistics.fmean(scores.values()),
        seconds=round(sum(c.train_s + c.prune_s + c.eval_s for c in costs), 1),
        sparsity=round(counted, 6),
        missed=abs(counted - sparsity) > MISS,
        collapsed=any(map(collapsed, records)),
    )
