"""Twins: small synthetic cells that stand for large ones, so that a suite is tried in minutes.

A twin has its cell's method, parameters, pattern and sparsity, on a tiny model and a synthetic task
of the same kind, for a few updates. It shows that the cell would run, and nothing of its score.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.overrides import Overrides, Scalar
from bench.planning import registry
from bench.planning.job import Job
from bench.sources.catalog import PLACES

STEPS = 12
"""Updates of a twin: enough for every ramp, phase and change of mask."""
ITEMS = 8
"""Items that a twin scores, where its task may score fewer than all."""

_BY_HEAD = {
    "classification": ("tiny/reviews", "tiny-bert"),
    "causal-lm": ("tiny/wikitext", "tiny-llama"),
}


def twins(jobs: Sequence[Job]) -> list[Job]:
    """Returns the twins of all jobs, each once.

    Cells that differ only in seed, size of the model, set of the task or budget have one twin.
    """
    return [Job.resolve(cell) for cell in dict.fromkeys(_twin(job) for job in jobs)]


def _twin(job: Job) -> Cell:
    name, model = _BY_HEAD[job.task.head]
    task = registry.task(job.task.twin or name)
    budget: dict[str, Scalar] = {"steps": STEPS}
    if task.limit:
        budget["items"] = min(ITEMS, task.limit)
    own = job.cell.overrides
    return job.cell.model_copy(
        update={
            "task": task.name,
            "model": _same_kind(job) or model,
            "seed": 1,
            "budget": "default",
            "overrides": Overrides(
                method=own.method, budget=tuple(budget.items()), export=own.export
            ),
        }
    )


def _same_kind(job: Job) -> str:
    """Returns the tiny model of the same architecture; an empty text where there is none."""
    from bench.sources.architectures import known_config

    if job.place.tiny is not None:
        return job.place.name
    try:
        config = known_config(job.place)
    except BenchError:  # it is not what is tried here
        return ""
    kind = config.model_type if config else ""
    return next((p.name for p in PLACES.values() if p.tiny is not None and p.repo == kind), "")
