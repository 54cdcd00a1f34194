"""A cell's model, from its weights to the finished one: load → attach → train → finish."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench import models, plan, provenance, quantize, registry, seeds, targets, train
from bench.api import BenchError, Budget, Cell, Context, Method, Task
from bench.cell import canonical
from bench.checkpoint import Checkpoints
from bench.parallel import ALONE, Means
from bench.record import Trainable
from bench.snapshot import Unfit

log = logging.getLogger(__name__)

Emit = Callable[[str, int, int], None]
"""(phase, steps done, steps in all)."""


@dataclass(frozen=True)
class Fitted:
    """A finished model, still in memory, and what making it took."""

    loaded: models.Loaded
    model: PreTrainedModel
    trained: train.Trained
    method: Method
    train_s: float
    prune_s: float
    dense_s: float


def fit_cell(cell: Cell, emit: Emit, resume: bool = False, means: Means = ALONE) -> Fitted:
    """Loads, attaches, trains and finishes; the model stays on the device, its parameters plain.

    Args:
        cell: what to fit.
        emit: takes the progress.
        resume: go on from a checkpoint if there is one, and write some if it takes long.
        means: batches in pieces, several devices.

    Raises:
        BenchError: with the kind that a failed record will bear.
    """
    scratch = plan.scratch_dir(cell) if resume else None
    try:
        return _fit(cell, emit, scratch, means)
    except Unfit as reason:
        log.warning("the checkpoint is of no use, training starts over: %s", reason)
    # Out here nothing holds on to the model that was spoilt.
    clear_scratch(cell)
    return _fit(cell, emit, scratch, means)


def clear_scratch(cell: Cell) -> None:
    """Removes the cell's checkpoints."""
    shutil.rmtree(plan.scratch_dir(cell), ignore_errors=True)


def _fit(cell: Cell, emit: Emit, scratch: Path | None, means: Means) -> Fitted:
    task, budget = registry.task(cell.task), plan.budget_of(cell)
    means.check(budget)
    # One-shot methods start from the dense cell's weights, training methods from the pretrained;
    # quantizing the dense cell takes no second training.
    start_trained = task.finetunes and not plan.trains(cell)
    trained_dir = plan.trained_dir(plan.reference_of(cell)) if start_trained else None
    loaded, method, prune_s = _attached(cell, emit, trained_dir)
    if means.sharded and not method.shardable:
        why = "it works on whole matrices; [trainer] processes without fsdp will do"
        raise BenchError(f"method {cell.method} cannot train with fsdp: {why}")
    trained = train.Trained(Trainable(body=0, head=0), "float32")
    train_s = 0.0
    if plan.trains(cell):
        emit("train", 0, budget.steps)
        start = time.perf_counter()
        checkpoints = None
        if scratch is not None and not means.sharded:
            depends = _depends(cell, budget, method, task, loaded) | {"means": means.told()}
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
            means,
        )
        train_s = time.perf_counter() - start + trained.earlier_s
        if means.sharded:  # what was trained is in pieces; the first process is given the whole
            loaded, method, _ = _attached(cell, emit, trained_dir)
            if trained.weights:
                loaded.model.load_state_dict(trained.weights)
    start = time.perf_counter()
    if method.trains:
        method.step(loaded.model, 1.0)
    method.finish(loaded.model)
    if quantization := cell.quantization:
        quantize.apply(loaded.model, quantization)
    prune_s += time.perf_counter() - start
    dense_s = _dense_seconds(trained_dir) if trained_dir else 0.0
    return Fitted(loaded, loaded.model, trained, method, train_s, prune_s, dense_s)


def _attached(
    cell: Cell, emit: Emit, trained_dir: Path | None
) -> tuple[models.Loaded, Method, float]:
    """The model on its device, the method attached to it, and the seconds that this took."""
    task, budget, device = registry.task(cell.task), plan.budget_of(cell), device_of()
    method_class = registry.method(cell.method)
    method = method_class(method_class.Params(**plan.hyper_of(cell)))
    emit("load", 0, 1)
    models.check(cell.model, task, budget.length)
    if trained_dir is not None:
        _dense_seconds(trained_dir)
    loaded = models.load(cell.model, task, cell.seed, trained_dir)
    loaded.tok.model_max_length = budget.length
    model = loaded.model.to(device)  # type: ignore[arg-type]
    ctx = context(cell, budget, task, loaded, device)
    seeds.seed_all(seeds.derive("method", cell.seed))
    emit("attach", 0, 1)
    start = time.perf_counter()
    method.attach(model, ctx)
    return loaded, method, time.perf_counter() - start


def _depends(
    cell: Cell, budget: Budget, method: Method, task: Task, loaded: models.Loaded
) -> dict[str, Any]:
    """What the numbers of a training depend on."""
    return {
        "cell": cell.model_dump(mode="json"),
        "budget": asdict(budget),
        "versions": plan.versions_of(cell).model_dump(),
        "method": provenance.code(type(method)).method_sha256,
        "sources": provenance.sources_sha256(),
        "weights": loaded.source.weights_sha256,
        "data": task.source().fingerprint,
        "env": provenance.env(),
    }


def context(
    cell: Cell, budget: Budget, task: Task, loaded: models.Loaded, device: torch.device
) -> Context:
    """What the method may know."""

    def calibration() -> Iterable[dict[str, Tensor]]:
        seed = seeds.derive("calibration", cell.task, cell.seed)
        batches = task.calibration(loaded.tok, budget.calib, budget.length, seed)
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    def teacher() -> PreTrainedModel:
        weights = plan.trained_dir(plan.reference_of(cell)) if task.finetunes else None
        model = models.load(cell.model, task, cell.seed, weights).model
        model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        return model

    return Context(
        cell=cell,
        budget=budget,
        targets=targets.prunable(loaded.model),
        calibration=calibration,
        teacher=teacher,
        rng=torch.Generator().manual_seed(seeds.derive("rng", cell.method, cell.seed)),
        device=device,
    )


def _dense_seconds(place: Path) -> float:
    if not place.is_dir():
        raise BenchError("the dense cell's weights are missing; run the dense cell first")
    stored: dict[str, Any] = json.loads((place / "sparsebench.json").read_text())
    return float(stored["train_s"])


def device_of() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
