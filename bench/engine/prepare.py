"""Checks models and fetches data and weights once, before any cell starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.costs.without_weights import NeedsWeights, attach
from bench.planning import registry
from bench.planning.job import Job
from bench.sources.architectures import config_at, empty, for_task, known_config
from bench.sources.catalog import Place, folder_of
from bench.sources.loading import check_model
from bench.weights.patterns import check_groups
from bench.weights.targets import prunable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def prepare(jobs: Sequence[Job]) -> dict[Cell, str]:
    """Fetches the data and weights of all jobs, after checking that each model fits its task.

    Returns:
        The cells whose data or weights cannot be reached, each with the reason.

    Raises:
        BenchError: a model does not fit its task, pattern or method, or a source is damaged.
    """
    pairs = {(job.task.name, job.place.name, job.budget.length): job for job in jobs}
    for job in pairs.values():
        if (config := known_config(job.place)) is not None:
            check_model(config, job.task, job.budget.length, job.place.name)
    _check_methods(jobs, known_config)
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
    left = [j for j in jobs if j.cell not in lacking and known_config(j.place) is None]
    _check_methods(left, config_at)
    return lacking


def _check_methods(
    jobs: Sequence[Job], config_of: Callable[[Place], PreTrainedConfig | None]
) -> None:
    """Refuses a model that a pattern or a training method does not fit, while nothing has trained.

    Methods of other packages are left to their cells' own processes: their code may do anything.
    A method that asks for the weights' values is not checked either.
    """
    own = registry.builtin("method")
    distinct = {
        (
            job.place.name,
            job.task.head,
            job.cell.method,
            job.cell.pattern,
            job.cell.overrides.method,
        ): job
        for job in jobs
        if job.trains or job.cell.pattern.n_m
    }
    for job in distinct.values():
        if (config := config_of(job.place)) is None:
            continue
        model = for_task(config, job.task)
        check_groups(prunable(empty(*model)), job.cell.pattern)
        if job.trains and job.cell.method in own:
            with suppress(NeedsWeights):
                attach(job.make_method(), job.cell, job.budget, *model)
