"""One cell from start to record: load → attach → train → finish → export → count → evaluate."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench import (
    count,
    latency,
    measure,
    models,
    plan,
    precision,
    provenance,
    quantize,
    registry,
    seeds,
    storage,
    targets,
    train,
    weightless,
)
from bench.api import BenchError, Budget, Cell, Context, Method, Split, Task
from bench.cell import REFERENCE, canonical
from bench.checkpoint import Checkpoints
from bench.record import (
    Cost,
    Data,
    Record,
    ScoresPart,
    Sparsity,
    Trainable,
)
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


def run_cell(cell: Cell, emit: Emit, accumulate: int = 1) -> Record:
    """Runs a cell and returns its record; a dense cell also leaves its weights in the cache.

    Training goes on from where a killed process has left it, to the same scores.

    Args:
        cell: what to run.
        emit: takes the progress.
        accumulate: pieces that a training batch goes through the model in, where memory is short.

    Raises:
        BenchError: with the kind that a failed record will bear.
    """
    task, budget = registry.task(cell.task), plan.budget_of(cell)
    device = device_of()
    fitted = fit_cell(cell, emit, True, accumulate)
    emit("count", 0, 1)
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as folder:
        fitted.model.save_pretrained(folder)
        fitted.model.to("meta")  # type: ignore[arg-type]
        model = models.load_folder(Path(folder), type(fitted.model))
    sparsity = count.sparsity(model, cell.pattern)
    check(cell, fitted.method, sparsity, model)
    macs = count.macs(model, budget.length, cell.pattern, count.has_kernel(device))
    macs = macs.model_copy(update={"train": train_macs(cell, fitted)})
    params = count.params(model, fitted.trained.trainable, fitted.method.published)
    emit("evaluate", 0, 1)
    start = time.perf_counter()
    model.to(device).eval()  # type: ignore[arg-type]
    eval_dtype = precision.for_scoring(task.head, device)
    with precision.autocast(eval_dtype, device):
        scores = task.evaluate(model, fitted.loaded.tok, device, budget=budget)
    eval_s = time.perf_counter() - start
    peak_bytes = measure.peak_bytes(device)
    emit("measure", 0, 1)
    speed = latency.of_cell(model, budget.length)
    source = task.source()
    record = Record(
        cell=cell,
        key=cell.key,
        versions=plan.versions_of(cell),
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
        ),
        params=params,
        sparsity=sparsity,
        macs=macs,
        bytes=storage.bytes_of(model, cell.pattern, cell.quantization),
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
        | ({"accumulate": accumulate} if accumulate > 1 else {}),
        time=provenance.now(),
    )
    if cell.method == REFERENCE and task.finetunes and cell.quantization is None:
        _keep(model, plan.trained_dir(cell), fitted.train_s)
    clear_scratch(cell)
    return record


def tune_cell(cell: Cell, emit: Emit, split: Split = "select") -> dict[str, float]:
    """The cell's scores on the select slice, for choosing hyper-parameters; leaves no record."""
    fitted = fit_cell(cell, emit)
    fitted.model.eval()
    task = registry.task(cell.task)
    tok, device, budget = fitted.loaded.tok, device_of(), plan.budget_of(cell)
    with precision.autocast(precision.for_scoring(task.head, device), device):
        return dict(task.evaluate(fitted.model, tok, device, split, budget).values)


def fit_cell(cell: Cell, emit: Emit, resume: bool = False, accumulate: int = 1) -> Fitted:
    """Loads, attaches, trains and finishes; the model stays on the device, its parameters plain.

    Args:
        cell: what to fit.
        emit: takes the progress.
        resume: go on from a checkpoint if there is one, and write some if it takes long.
        accumulate: pieces that a training batch goes through the model in.
    """
    scratch = plan.scratch_dir(cell) if resume else None
    try:
        return _fit(cell, emit, scratch, accumulate)
    except Unfit as reason:
        log.warning("the checkpoint is of no use, training starts over: %s", reason)
    # Out here nothing holds on to the model that was spoilt.
    clear_scratch(cell)
    return _fit(cell, emit, scratch, accumulate)


def clear_scratch(cell: Cell) -> None:
    """Removes the cell's checkpoints."""
    shutil.rmtree(plan.scratch_dir(cell), ignore_errors=True)


def _fit(cell: Cell, emit: Emit, scratch: Path | None, accumulate: int) -> Fitted:
    task, budget = registry.task(cell.task), plan.budget_of(cell)
    method_class = registry.method(cell.method)
    method = method_class(method_class.Params(**plan.hyper_of(cell)))
    device = device_of()
    emit("load", 0, 1)
    models.check(cell.model, task, budget.length)
    # One-shot methods start from the dense cell's weights, training methods from the pretrained;
    # quantizing the dense cell takes no second training.
    trained_dir = plan.trained_dir(plan.reference_of(cell))
    is_trained = plan.is_quantized_reference(cell)
    start_trained = task.finetunes and (is_trained or not method.trains)
    loaded = models.load(cell.model, task, cell.seed, trained_dir if start_trained else None)
    dense_s = _dense_seconds(trained_dir) if start_trained else 0.0
    loaded.tok.model_max_length = budget.length
    model = loaded.model.to(device)  # type: ignore[arg-type]
    ctx = context(cell, budget, task, loaded, device)
    seeds.seed_all(seeds.derive("method", cell.seed))
    emit("attach", 0, 1)
    start = time.perf_counter()
    method.attach(model, ctx)
    prune_s = time.perf_counter() - start
    trained = train.Trained(Trainable(body=0, head=0), "float32")
    train_s = 0.0
    retrains = (task.finetunes and not is_trained) or cell.method != REFERENCE
    if method.trains and task.trains and retrains:
        emit("train", 0, budget.steps)
        start = time.perf_counter()
        checkpoints = None
        if scratch is not None:
            depends = _depends(cell, budget, method, task, loaded) | {"accumulate": accumulate}
            checkpoints = Checkpoints(scratch, hashlib.sha256(canonical(depends)).hexdigest())
        trained = train.fit(
            method,
            model,
            loaded.tok,
            task,
            budget,
            cell.seed,
            lambda step, steps: emit("train", step, steps),
            checkpoints,
            accumulate,
        )
        train_s = time.perf_counter() - start + trained.earlier_s
    start = time.perf_counter()
    if method.trains:
        method.step(model, 1.0)
    method.finish(model)
    if quantization := cell.quantization:
        quantize.apply(model, quantization)
    prune_s += time.perf_counter() - start
    return Fitted(loaded, model, trained, method, train_s, prune_s, dense_s)


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


def train_macs(cell: Cell, fitted: Fitted) -> int | None:
    """Multiply-adds of one update for one sequence; None where they cannot be counted.

    Counted on a model and a method of their own, without weights: nothing of the cell moves.
    """
    if fitted.trained.trainable == Trainable(body=0, head=0):
        return 0
    method_class = type(fitted.method)
    method = method_class(method_class.Params(**plan.hyper_of(cell)))
    model, budget = fitted.model, plan.budget_of(cell)
    try:
        return weightless.update_macs(
            weightless.attach(method, cell, budget, type(model), model.config)
        )
    except BenchError:
        return None


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


def check(cell: Cell, method: Method, found: Sparsity, model: PreTrainedModel) -> None:
    """Holds the method to what it promised (DESIGN §10: a method that lies fails)."""
    if not found.pattern_ok:
        raise BenchError(f"{cell.method}: pattern {cell.pattern} does not hold", "contract")
    # Each matrix rounds its count down, so at most one element a matrix is missing.
    matrices = targets.prunable(model)
    slack = len(matrices) / sum(t.shape[0] * t.shape[1] for t in matrices) + 1e-6
    if cell.pattern == "unstructured" and method.promises_sparsity:
        slack += 1e-4  # weights that are zero by chance
    else:
        slack += 1e-2  # whole heads, neurons and blocks come in steps
    # Quantizing rounds small weights to zero: more zeros than promised are no lie then.
    more = found.overall > cell.sparsity and cell.quantization is not None
    if method.promises_sparsity and not more and abs(found.overall - cell.sparsity) > slack:
        raise BenchError(
            f"{cell.method}: counted sparsity {found.overall:.6f}, promised {cell.sparsity}",
            "contract",
        )


def _keep(model: PreTrainedModel, place: Path, seconds: float) -> None:
    """Leaves a dense cell's weights where one-shot methods find them, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".keep-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        try:
            model.save_pretrained(new)
            (new / "sparsebench.json").write_text(json.dumps({"train_s": seconds}))
            with contextlib.suppress(FileNotFoundError):
                place.rename(old)
            new.rename(place)
        except OSError as error:
            if place.is_dir():  # another process was faster, with the same weights
                return
            why = f"cannot write {place}: {error.strerror or error}"
            raise BenchError(why, "disk") from None


def _dense_seconds(place: Path) -> float:
    if not place.is_dir():
        raise BenchError("the dense cell's weights are missing; run the dense cell first")
    stored: dict[str, Any] = json.loads((place / "sparsebench.json").read_text())
    return float(stored["train_s"])


def device_of() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
