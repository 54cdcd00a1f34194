"""Measures time and memory of a training step of each method, relative to dense fine-tuning.

All models take turns step by step, so that other load on the machine affects all of them alike.
Compare the median of the ratios, each of two steps of one turn; the milliseconds serve for
orientation. Memory is the peak of a
few steps, in a separate process for each method.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.api import Method
from bench.core.cell import REFERENCE
from bench.core.errors import BenchError
from bench.core.overrides import parse_settings
from bench.core.pattern import UNSTRUCTURED, default_of
from bench.core.tables import plain
from bench.costs import measure
from bench.pipeline.context import make_context
from bench.planning import registry
from bench.planning.job import Job
from bench.planning.plan import make_cell
from bench.sources import loading
from bench.weights.precision import supports_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARMUP = 3
TASK = "tiny/reviews"  # it decides only the head; the batch holds random tokens


def default_methods() -> list[str]:
    """Lists all registered methods that train, at sparsity 0.5 and 0.9 where it is free."""
    named = []
    for method in registry.training_methods():
        free = UNSTRUCTURED.made_by(method.patterns)
        named += [method.name + level for level in ((":0.5", ":0.9") if free else ("",))]
    return named


def step_table(
    methods: Sequence[str], model: str, batch: int, length: int, steps: int, dtype: str
) -> str:
    """Measures training steps and returns a text table; dense is always among the methods.

    Args:
        methods: `name`, `name:sparsity` or `name:sparsity:key=value`, as in `ast:0.5:kd=0`.
        model: slug of the model.
        batch: sequences an update.
        length: tokens a sequence.
        steps: number of timed updates.
        dtype: `auto`, `float32` or `bf16`.

    Raises:
        BenchError: a method or parameter is unknown, or a method does not train.
    """
    measure.reuse_freed_memory()
    names = list(dict.fromkeys([REFERENCE, *methods]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = supports_bf16(device) if dtype == "auto" else dtype == "bf16"
    updates = {name: _update(name, model, batch, length, bf16, device) for name in names}
    peaks = _peaks(names, model, batch, length, bf16, device)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARMUP + steps):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= WARMUP:
                times[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in times.items():
        low, ratio, high = measure.paired_quartiles(taken, times[REFERENCE])
        spread = f"{low:.2f}–{high:.2f}"
        step = (f"{1000 * statistics.median(taken):.0f}", f"{ratio:.3f}", spread)
        memory = (f"{peaks[name] / 2**30:.2f}", f"{peaks[name] / peaks[REFERENCE]:.2f}")
        rows.append([name, *step, *memory])
    about = (
        f"training step, {model}, {batch} × {length} tokens, "
        f"{'bf16 autocast' if bf16 else 'float32'}, {torch.get_num_threads()} threads, "
        f"median of {steps} interleaved steps after {WARMUP}"
    )
    headers = ("method", "ms", "× dense", "quartiles of × dense", "peak GiB", "peak × dense")
    return about + "\n\n" + plain(headers, rows)


def _peaks(
    names: Sequence[str], slug: str, batch: int, length: int, bf16: bool, device: torch.device
) -> dict[str, int]:
    """Measures the peak bytes of a few updates, each method in a fresh process."""
    return {
        name: measure.in_fresh_process(_peak, name, slug, batch, length, bf16, device)
        for name in names
    }


def _peak(name: str, slug: str, batch: int, length: int, bf16: bool, device: torch.device) -> int:
    measure.reuse_freed_memory()
    update = _update(name, slug, batch, length, bf16, device)
    for _ in range(WARMUP):
        update()
    return measure.peak_bytes(device)


def _update(
    name: str, slug: str, batch: int, length: int, bf16: bool, device: torch.device
) -> Callable[[], Tensor]:
    """Makes a function that runs a whole update of a method at its final sparsity.

    An update is forward, backward, clipping and optimizer. The teacher is the untrained model,
    since its time does not depend on its weights.
    """
    method_name, _, rest = name.partition(":")
    level, _, pairs = rest.partition(":")
    pattern = default_of(registry.method(method_name).patterns[0])
    job = Job.resolve(
        make_cell(
            task=TASK,
            model=slug,
            method=method_name,
            pattern=pattern,
            sparsity=float(level or pattern.sparsity or 0.0),
            overrides=parse_settings(pairs.split(":") if pairs else ()),
        )
    )
    if not job.method.trains:
        raise BenchError(f"method {method_name} does not train; name methods that train")
    loaded = loading.load_for_task(job.place, job.task, job.cell.seed)
    model = loaded.model.to(device)  # type: ignore[arg-type]
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    method = job.make_method()
    ctx = make_context(job, loaded, device)
    method.attach(model, ctx._replace(teacher=lambda: teacher))
    optimizer = method.optimizer(method.param_groups(model))
    method.step(model, 1.0)
    model.train()
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.vocab_size)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(device)
    labels = torch.randint(0, job.task.labels, (batch,), generator=generator).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return lambda: run_update(method, model, optimizer, inputs, bf16)


def run_update(
    method: Method,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, Tensor],
    bf16: bool,
) -> Tensor:
    """Runs a whole update on a batch, forward, backward, clipping and optimizer.

    Returns:
        The loss, a scalar without a graph.
    """
    device = model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = method.loss(model, inputs, model(**inputs))
    loss.backward()
    if method.max_grad_norm:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(held, method.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
