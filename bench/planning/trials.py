"""The trials of a suite's settings: every setting of a method's search, on the select slice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.overrides import Overrides, Setting
from bench.core.tuning import MOST_SETTINGS, TRIAL_SHARE, family_of
from bench.planning.job import Job


@dataclass(frozen=True)
class Search:
    """What decides on the settings of a method at one pattern and sparsity.

    Attributes:
        rows: its jobs without the settings, one a task of the family.
        settings: what is tried, the default first.
        jobs: for each setting, the trials of these jobs.
    """

    rows: Sequence[Job]
    settings: tuple[Setting, ...]
    jobs: list[list[Job]] = field(default_factory=list)

    @property
    def cell(self) -> Cell:
        """One of the cells, without the settings."""
        return self.rows[0].cell


def searches(jobs: Iterable[Job]) -> list[Search]:
    """Groups a suite's jobs by what is chosen together, and makes the jobs of all trials.

    Methods with nothing to choose have no search; neither have cells whose parameters are given.

    Raises:
        BenchError: a method tries more settings than are allowed.
    """
    groups: dict[tuple[object, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        cell = job.cell
        if len(job.method.search) > 1 and not cell.overrides.method:
            family = (family_of(cell.task), cell.budget, cell.overrides.export)
            groups[cell.method, cell.pattern, cell.sparsity, cell.model, *family].append(job)
    return [_search(inside) for inside in groups.values()]


def _search(jobs: Sequence[Job]) -> Search:
    method = jobs[0].method
    if len(method.search) > MOST_SETTINGS or method.search[0]:
        raise BenchError(
            f"method {method.name} tries {len(method.search)} settings: write at most "
            f"{MOST_SETTINGS}, the default (no parameter) first"
        )
    made = Search(jobs, tuple(method.search))
    for setting in method.search:
        made.jobs.append([_trial(job, setting) for job in jobs])
    return made


def _trial(job: Job, setting: Setting) -> Job:
    overrides = job.cell.overrides | Overrides.of(setting)
    if job.trains:
        steps = math.ceil(TRIAL_SHARE * job.budget.steps)
        overrides |= Overrides(budget=(("steps", steps),))
    return Job.resolve(job.cell.model_copy(update={"overrides": overrides}), "select")


def trial_jobs(found: Sequence[Search]) -> list[Job]:
    """Returns all jobs of the searches, and the dense ones that they start or learn from."""
    trials = [job for search in found for tried in search.jobs for job in tried]
    dense = [job.dense for job in trials if job.needs_dense]
    return list({job.cell: job for job in (*dense, *trials)}.values())
