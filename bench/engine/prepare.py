"""Checks models and fetches data and weights once, before any cell starts."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.planning.job import Job
from bench.sources.architectures import config_at, known_config
from bench.sources.catalog import folder_of
from bench.sources.loading import check_model


def prepare(jobs: Sequence[Job]) -> dict[Cell, str]:
    """Fetches the data and weights of all jobs, after checking that each model fits its task.

    Returns:
        The cells whose data or weights cannot be reached, each with the reason.

    Raises:
        BenchError: a model does not fit its task, or a source is damaged.
    """
    pairs = {(job.task.name, job.place.name, job.budget.length): job for job in jobs}
    for job in pairs.values():
        if (config := known_config(job.place)) is not None:
            check_model(config, job.task, job.budget.length, job.place.name)
    offline: dict[tuple[str, str], str] = {}
    for job in pairs.values():
        for kind, name in (("task", job.task.name), ("model", job.place.name)):
            try:
                if kind == "task":
                    job.task.prepare()
                else:
                    folder_of(job.place)
            except BenchError as error:
                if error.kind != "offline":
                    raise
                offline[kind, name] = str(error)
    lacking = {
        job.cell: offline[source]
        for job in jobs
        for source in (("task", job.task.name), ("model", job.place.name))
        if source in offline
    }
    for job in pairs.values():
        if job.cell not in lacking:
            check_model(config_at(job.place), job.task, job.budget.length, job.place.name)
    return lacking
