"""One cell from start to record: load → attach → train → finish → export → count → evaluate."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from bench import (
    count,
    latency,
    measure,
    models,
    plan,
    precision,
    provenance,
    registry,
    storage,
    targets,
    weightless,
)
from bench.api import BenchError, Cell, Method, Split
from bench.cell import REFERENCE
from bench.fitting import Emit, Fitted, clear_scratch, device_of, fit_cell
from bench.parallel import ALONE, Means
from bench.record import (
    Cost,
    Data,
    Record,
    ScoresPart,
    Sparsity,
    Trainable,
)


def run_cell(cell: Cell, emit: Emit, means: Means = ALONE) -> Record:
    """Runs a cell and returns its record; a dense cell also leaves its weights in the cache.

    Training goes on from where a killed process has left it, to the same scores.

    Args:
        cell: what to run.
        emit: takes the progress.
        means: batches in pieces, several devices.

    Raises:
        BenchError: with the kind that a failed record will bear.
    """
    task, budget = registry.task(cell.task), plan.budget_of(cell)
    device = device_of()
    fitted = fit_cell(cell, emit, True, means)
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
        | means.told(),
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
