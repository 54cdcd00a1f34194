"""Makes a cell's finished model from its weights: load → attach → train → finish."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bench.api import Method
from bench.core import provenance, seeds
from bench.core.cell import canonical
from bench.core.errors import BenchError
from bench.core.record_parts import Trainable
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.core.store import path_of
from bench.formats import quantize
from bench.pipeline.cache import clear_scratch, dense_seconds, scratch_dir, trained_dir
from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from bench.sources.architectures import config_at
from bench.sources.loading import check_model
from bench.training import train
from bench.training.checkpoint import Checkpoints
from bench.training.state import Unfit
from bench.weights.finite import check_weights
from bench.weights.precision import default_device
from bench.weights.zeros_before import ZerosBefore

log = logging.getLogger(__name__)

Emit = Callable[[str, int, int], None]
"""Takes progress as (phase, steps done, steps in all)."""


@dataclass(frozen=True)
class Fitted:
    """A finished model in memory, and the seconds that each phase took.

    Attributes:
        loaded: the loaded model with its tokenizer and source.
        model: the finished model, on the device.
        trained: what training held, and its dtype.
        method: the attached method.
        train_s: seconds of training, those before an interruption included.
        prune_s: seconds of attaching, pruning and finishing.
        dense_s: seconds of training of the dense cell that a one-shot method started from.
        before: the zeros that the method was given.
    """

    loaded: loading.Loaded
    model: PreTrainedModel
    trained: train.Trained
    method: Method
    train_s: float
    prune_s: float
    dense_s: float
    before: ZerosBefore


def fit_cell(
    job: Job, emit: Emit, resume: bool = False, settings: RunSettings = DEFAULTS
) -> Fitted:
    """Loads, attaches, trains and finishes a cell's model.

    The finished model stays on the device, and its parameters are plain.

    Args:
        job: the cell to fit, resolved.
        emit: called with (phase, steps done, steps in all).
        resume: whether to continue from a checkpoint, and to write some during long trainings.
        settings: number of processes and of pieces of a batch.

    Raises:
        BenchError: the cell failed; its kind is that of the failed record.
    """
    scratch = scratch_dir(job) if resume else None
    try:
        return _fit(job, emit, scratch, settings)
    except Unfit as reason:
        log.warning("the checkpoint cannot be used, so training starts again: %s", reason)
    # Outside the except block nothing refers to the damaged model any more.
    clear_scratch(job)
    return _fit(job, emit, scratch, settings)


def _fit(job: Job, emit: Emit, scratch: Path | None, settings: RunSettings) -> Fitted:
    cell, task, budget = job.cell, job.task, job.budget
    settings.check(budget)
    # One-shot methods start from the dense cell's weights, training methods from pretrained ones.
    # Quantizing the dense cell needs no second training.
    start_trained = task.finetunes and not job.trains
    weights = trained_dir(job.dense) if start_trained else None
    loaded, method, prune_s, before = _attached(job, emit, weights)
    if settings.sharded and not method.shardable:
        reason = "it works on whole matrices; use [trainer] processes without fsdp"
        raise BenchError(f"method {cell.method} cannot train with fsdp: {reason}")
    trained = train.Trained(Trainable(body=0, head=0), "float32")
    train_s = 0.0
    if job.trains:
        emit("train", 0, budget.steps)
        start = time.perf_counter()
        checkpoints = None
        if scratch is not None and not settings.sharded:
            depends = _depends(job, loaded) | {"settings": settings.as_env()}
            checkpoints = Checkpoints(scratch, hashlib.sha256(canonical(depends)).hexdigest())
        trained = train.fit(
            method,
            loaded.model,
            loaded.tok,
            task,
            budget,
            cell.seed,
            lambda step, steps: emit("train", step, steps),
            checkpoints,
            settings,
            path_of(cell).with_suffix("").as_posix(),
        )
        train_s = time.perf_counter() - start + trained.earlier_s
        if settings.sharded:  # each process holds a piece; the first one receives all weights
            loaded, method, _, before = _attached(job, emit, weights)
            if trained.weights:
                loaded.model.load_state_dict(trained.weights)
    start = time.perf_counter()
    if method.trains:
        method.step(loaded.model, 1.0)
    method.finish(loaded.model)
    if quantization := cell.quantization:
        quantize.apply(loaded.model, quantization)
    prune_s += time.perf_counter() - start
    check_weights(loaded.model, cell.method)
    dense_s = dense_seconds(weights, job) if weights else 0.0
    return Fitted(loaded, loaded.model, trained, method, train_s, prune_s, dense_s, before)


def _attached(
    job: Job, emit: Emit, weights: Path | None
) -> tuple[loading.Loaded, Method, float, ZerosBefore]:
    """Returns the model on its device, the attached method, its seconds, and the zeros before."""
    device, method = default_device(), job.make_method()
    emit("load", 0, 1)
    check_model(config_at(job.place), job.task, job.budget.length, job.place.name)
    if weights is not None:
        dense_seconds(weights, job)
    loaded = loading.load_for_task(job.place, job.task, job.cell.seed, weights)
    loaded.tok.model_max_length = job.budget.length
    check_weights(loaded.model, job.place.name)
    model = loaded.model.to(device)  # type: ignore[arg-type]
    ctx = make_context(job, loaded, device)
    before = ZerosBefore(ctx.targets)
    if not job.trains:
        before.check_room(ctx.targets, job.cell.pattern, job.cell.sparsity, job.place.name)
    seeds.seed_all(seeds.derive("method", job.cell.seed))
    emit("attach", 0, 1)
    start = time.perf_counter()
    method.attach(model, ctx)
    return loaded, method, time.perf_counter() - start, before


def _depends(job: Job, loaded: loading.Loaded) -> dict[str, Any]:
    """Returns everything that the numbers of a training depend on."""
    return {
        "cell": job.cell.model_dump(mode="json"),
        "budget": asdict(job.budget),
        "versions": job.versions.model_dump(),
        "method": provenance.code(job.method).method_sha256,
        "sources": provenance.sources_sha256(),
        "weights": loaded.source.weights_sha256,
        "data": job.task.source().fingerprint,
        "env": provenance.env(),
    }
