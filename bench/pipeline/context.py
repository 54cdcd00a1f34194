"""The context: everything that a method may know."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.api import Context
from bench.core import seeds
from bench.pipeline.cache import trained_dir
from bench.planning.job import Job
from bench.planning.setups import context_of
from bench.sources import loading
from bench.sources.limits import check_ids


def make_context(job: Job, loaded: loading.Loaded, device: torch.device) -> Context:
    """Makes the context of a job's method for a loaded model on `device`."""
    cell, task, budget = job.cell, job.task, job.budget

    def calibration() -> Iterable[dict[str, Tensor]]:
        seed = seeds.derive("calibration", cell.task, cell.seed)
        batches = task.calibration(loaded.tok, budget.calib, budget.length, seed)
        check_ids(batches, loaded.model, f"calibration on {cell.task}")
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    def teacher() -> PreTrainedModel:
        weights = trained_dir(job.dense) if task.finetunes else None
        model = loading.load_for_task(job.place, task, cell.seed, weights).model
        model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        return model

    return context_of(cell, budget, loaded.model, calibration, teacher, device)
