"""Runs a cell: load → attach → train → finish → export → count → evaluate → measure → record."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench.core import provenance
from bench.core.cell import REFERENCE
from bench.core.errors import BenchError
from bench.core.record import Record
from bench.core.record_parts import Cost, Data, ScoresPart, Trainable
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.costs import latency, measure, without_weights
from bench.costs.contract import check_contract
from bench.costs.macs import count_macs
from bench.costs.parameters import count_params, count_sparsity
from bench.costs.products import forward_macs
from bench.formats import file_sizes
from bench.pipeline.cache import clear_scratch, keep_weights
from bench.pipeline.fit import Emit, Fitted, fit_cell
from bench.planning.job import Job
from bench.sources import loading
from bench.sources.architectures import config_at, empty, for_task
from bench.sources.loading import check_model
from bench.sources.saving import save_model
from bench.weights.patterns import has_kernel
from bench.weights.precision import autocast, default_device, for_scoring


def run_cell(job: Job, emit: Emit, settings: RunSettings = DEFAULTS) -> Record:
    """Runs a cell and returns its record; a dense cell also leaves its weights in the cache.

    Training continues from the last checkpoint of a killed process, with the same scores.

    Args:
        job: the cell to run, resolved.
        emit: called with (phase, steps done, steps in all).
        settings: number of processes and of pieces of a batch.

    Raises:
        BenchError: the cell failed; its kind is that of the failed record.
    """
    cell, task, budget = job.cell, job.task, job.budget
    device = default_device()
    check_countable(job)
    fitted = fit_cell(job, emit, True, settings)
    emit("count", 0, 1)
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as folder:
        save_model(fitted.model, folder)
        fitted.model.to("meta")  # type: ignore[arg-type]
        model = loading.load_model(Path(folder), type(fitted.model))
    left_dense = fitted.method.left_dense
    sparsity = count_sparsity(model, cell.pattern, fitted.before, left_dense)
    check_contract(cell, fitted.method, sparsity, model, fitted.before)
    macs = count_macs(model, budget.length, cell.pattern, has_kernel(device))
    macs = macs.model_copy(update={"train": train_macs(job, fitted)})
    params = count_params(model, fitted.trained.trainable, fitted.method.published)
    emit("evaluate", 0, 1)
    start = time.perf_counter()
    model.to(device).eval()  # type: ignore[arg-type]
    eval_dtype = for_scoring(task.head, device)
    with autocast(eval_dtype, device):
        scores = task.evaluate(model, fitted.loaded.tok, device, job.split, budget)
    eval_s = time.perf_counter() - start
    peak_bytes = measure.peak_bytes(device)
    speed = []
    if job.split == "test":  # a trial's latency decides on nothing
        emit("measure", 0, 1)
        speed = latency.of_cell(model, budget.length)
    source = task.source()
    record = Record(
        cell=cell,
        key=cell.key,
        versions=job.versions,
        status="done",
        budget=budget,
        hyper=asdict(fitted.method.params),
        scores=ScoresPart(
            metric=task.metric,
            higher_is_better=task.higher_is_better,
            value=scores.values[task.metric],
            all=dict(scores.values),
            n=scores.n,
            items=scores.items,
            notes=list(scores.notes) or None,
            written=scores.written or None,
            split=None if job.split == "test" else job.split,
        ),
        params=params,
        sparsity=sparsity,
        macs=macs,
        bytes=file_sizes.bytes_of(model, cell.pattern, cell.quantization),
        cost=Cost(
            train_s=fitted.train_s,
            prune_s=fitted.prune_s,
            eval_s=eval_s,
            dense_s=fitted.dense_s,
            peak_bytes=peak_bytes,
        ),
        report=fitted.method.report,
        speed=speed,
        data=Data(**asdict(source)),
        model=fitted.loaded.source,
        code=provenance.code(type(fitted.method)),
        env=provenance.env()
        | {"train_dtype": fitted.trained.dtype, "eval_dtype": eval_dtype}
        | ({"resumed_at": fitted.trained.resumed} if fitted.trained.resumed else {})
        | settings.as_env(),
        time=provenance.now(),
    )
    if cell.method == REFERENCE and task.finetunes and cell.quantization is None:
        keep_weights(model, job, fitted.train_s)
    clear_scratch(job)
    return record


def check_countable(job: Job) -> None:
    """Counts the cell's model from its config, so that nothing is trained that has no count.

    Raises:
        BenchError: the model cannot do the task, or cannot be counted.
    """
    config = config_at(job.place)
    check_model(config, job.task, job.budget.length, job.place.name)
    forward_macs(empty(*for_task(config, job.task)), job.budget.length)


def train_macs(job: Job, fitted: Fitted) -> int | None:
    """Counts the multiply-adds of one update, divided by its sequences; None if it cannot.

    It counts on a separate model without weights and a separate method, so the cell is unchanged.
    """
    if fitted.trained.trainable == Trainable(body=0, head=0):
        return 0
    method, model = job.make_method(), fitted.model
    try:
        return without_weights.update_macs(
            without_weights.attach(method, job.cell, job.budget, type(model), model.config)
        )
    except BenchError:
        return None
