"""Cells without weights: a model on the meta device, a method attached to it, one update counted.

Shapes alone decide what a method trains and what an update multiplies. So a config is enough to
count both: nothing is downloaded, no memory is taken, and every method is measured by running its
own `attach`, `step` and `loss`, not by a formula that would have to be kept true to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from bench.api import Context, Method
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError, one_line
from bench.sources.architectures import empty
from bench.weights.targets import head_parameters, prunable


@dataclass(frozen=True)
class Weightless:
    """A method attached to a model of shapes, and a batch for it, all on the meta device."""

    model: PreTrainedModel
    method: Method
    ctx: Context
    inputs: dict[str, Tensor]


def attach(
    method: Method, cell: Cell, budget: Budget, kind: Any, config: PreTrainedConfig
) -> Weightless:
    """Attaches a training method; a one-shot method changes no shapes and is left alone.

    Raises:
        BenchError: the method refuses, or asks for the weights' values.
    """
    model = empty(kind, config)
    with torch.device("meta"):
        inputs = batch(model, budget.batch, budget.length)
        ctx = Context(
            cell=cell,
            budget=budget,
            targets=prunable(model),
            calibration=lambda: [inputs],
            teacher=lambda: empty(kind, config).eval().requires_grad_(False),
            rng=torch.Generator(device="cpu"),
            device=torch.device("meta"),
        )
        if method.trains:
            with _values_refused(method):
                method.attach(model, ctx)
    return Weightless(model, method, ctx, inputs)


def batch(model: PreTrainedModel, size: int, length: int) -> dict[str, Tensor]:
    """Inputs of one update: (size, length) tokens without padding, and labels."""
    ids = torch.ones(size, length, dtype=torch.long, device="meta")
    classifies = any(True for _ in head_parameters(model))
    dtype = torch.float32 if model.config.num_labels == 1 else torch.long
    labels = torch.zeros(size, dtype=dtype, device="meta") if classifies else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def update_macs(cell: Weightless) -> int:
    """Counts multiply-adds of one update at the final sparsity, divided by its sequences.

    Every matrix product of forward, loss and backward counts, a teacher's among them. Products of
    weights with weights, as low-rank updates are, are paid once an update, whatever the batch.

    Raises:
        BenchError: the method asks for the weights' values.
    """
    model, method, inputs = cell.model, cell.method, cell.inputs
    model.train()
    with torch.device("meta"), _values_refused(method):
        method.step(model, 1.0)
        with _NothingIsPadding(), _counter() as counter:
            method.loss(model, inputs, model(**inputs)).backward()
    flops: int = counter.get_total_flops()
    return round(flops / 2 / len(inputs["input_ids"]))


def forward_macs(model: PreTrainedModel, length: int) -> dict[str, int]:
    """Counts multiply-adds of one sequence's forward pass by module; the whole is `""`."""
    inputs = batch(model, 1, length)
    model.eval()
    counter = _counter()
    with torch.device("meta"), torch.no_grad(), _NothingIsPadding(), counter:
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    prefix = f"{type(model).__name__}."
    found = {
        name.removeprefix(prefix): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
    }
    return found | {"": counter.get_total_flops() // 2}


def tensors(*things: Any) -> Iterator[Tensor]:
    """Yields all tensors that objects hold, each once, with their gradients."""
    seen: set[int] = set()
    left: list[Any] = list(things)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
            left.append(thing.grad)
        elif isinstance(thing, dict):
            left.extend(thing.values())
        elif isinstance(thing, (list, tuple)):
            left.extend(thing)
        elif hasattr(thing, "__dict__"):
            left.extend(vars(thing).values())


def _counter() -> FlopCounterMode:
    """Makes a FlopCounterMode that also knows products in place and with vectors; 2 a MAC."""
    aten = torch.ops.aten
    mapping = {
        aten.addmm_: lambda c, a, b, **_: 2 * a[0] * a[1] * b[1],
        aten.baddbmm_: lambda c, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
        aten.mv: lambda a, x, **_: 2 * a[0] * a[1],
        aten.addmv: lambda y, a, x, **_: 2 * a[0] * a[1],
        aten.addmv_: lambda y, a, x, **_: 2 * a[0] * a[1],
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


@contextmanager
def _values_refused(method: Method) -> Iterator[None]:
    """Turns what torch says about missing values into one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        line = one_line(error)
        raise BenchError(f"{method.name} needs weights to be counted: {line}") from error


class _NothingIsPadding(TorchDispatchMode):
    """Answers yes when transformers asks whether all tokens are real ones.

    That question about values is the only one its models ask, to do without a mask.
    """

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        return func(*args, **(kwargs or {}))
