"""Counts an update of a method on a model without weights, on the meta device.

Shapes alone decide what a method trains and what an update multiplies, so a config is enough to
count both. Nothing is downloaded and no memory is taken. Each method runs its own `attach`, `step`
and `loss`, so there is no formula to keep in step with them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bench.api import Context, Method
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError, one_line
from bench.costs.products import counting, sequences
from bench.sources.architectures import empty
from bench.weights.blocks import blocks
from bench.weights.targets import head_parameters, prunable

LARGEST_MASK = 2**26
"""Elements of an attention mask that is made to count a whole batch; in float32 256 MiB."""


class NeedsWeights(BenchError):
    """A method asks for the weights' values, so it cannot be attached without them."""


@dataclass(frozen=True)
class Attached:
    """A method attached to a model on the meta device, and a batch on the CPU."""

    model: PreTrainedModel
    method: Method
    ctx: Context
    inputs: dict[str, Tensor]


def attach(
    method: Method, cell: Cell, budget: Budget, kind: Any, config: PreTrainedConfig
) -> Attached:
    """Attaches a training method to a model on the meta device.

    A one-shot method is not attached, because it changes no shapes.

    Raises:
        BenchError: the method refuses the model or the cell.
        NeedsWeights: it asks for the weights' values.
    """
    model = empty(kind, config)
    inputs = batch(model, budget.batch, budget.length)
    with torch.device("meta"):
        ctx = Context(
            cell=cell,
            budget=budget,
            targets=prunable(model),
            calibration=lambda: [{name: t.to("meta") for name, t in inputs.items()}],
            teacher=lambda: empty(kind, config).eval().requires_grad_(False),
            rng=torch.Generator(device="cpu"),
            device=torch.device("meta"),
        )
        if method.trains:
            with _values_refused(method):
                method.attach(model, ctx)
    return Attached(model, method, ctx, inputs)


def batch(model: PreTrainedModel, size: int, length: int) -> dict[str, Tensor]:
    """Makes the inputs of one update: (size, length) tokens without padding, and labels."""
    inputs = sequences(model, size, length)
    if any(True for _ in head_parameters(model)):
        dtype = torch.float32 if model.config.num_labels == 1 else torch.long
        return inputs | {"labels": torch.zeros(size, dtype=dtype)}
    return inputs | {"labels": inputs["input_ids"]}


def update_macs(cell: Attached) -> int:
    """Counts the multiply-adds of one update at the final sparsity, divided by its sequences.

    All matrix products of forward, loss and backward count, including those of a teacher. Products
    of weights with weights, as in low-rank updates, occur once an update for any batch size.

    Raises:
        BenchError: the method asks for the weights' values.
    """
    return round(_update_flops(cell) / 2 / len(cell.inputs["input_ids"]))


def update_macs_by_parts(
    make: Callable[[], Method], cell: Cell, budget: Budget, kind: Any, config: PreTrainedConfig
) -> int:
    """Counts as `update_macs` does, in less time and memory for large models and batches.

    Where all blocks are alike, one and two of them tell the rest. Where the attention masks,
    which lie in real memory, are large, one and two sequences tell the rest.

    Args:
        make: makes the method, not yet attached.
        cell: the cell.
        budget: its batch and length are counted.
        kind: the model's class.
        config: the model's config.

    Raises:
        BenchError: the method refuses the model or the cell, or asks for the weights' values.
    """

    def flops(config: PreTrainedConfig, batch: int) -> int:
        smaller = dataclasses.replace(budget, batch=batch)
        return _update_flops(attach(make(), cell, smaller, kind, config))

    def of_batch(config: PreTrainedConfig) -> int:
        if budget.batch * budget.length**2 <= LARGEST_MASK:
            return flops(config, budget.batch)
        return _line(budget.batch, flops(config, 1), flops(config, 2))

    depth = getattr(config, "num_hidden_layers", 0)
    if depth < 4 or not _stacked(kind, config.to_json_string(), depth):
        total = of_batch(config)
    else:
        total = _line(depth, of_batch(_cut(config, 1)), of_batch(_cut(config, 2)))
    return round(total / 2 / budget.batch)


def _line(x: int, at_one: int, at_two: int) -> int:
    return at_one + (x - 1) * (at_two - at_one)


@cache
def _stacked(kind: Any, config: str, depth: int) -> bool:
    """Asks `_alike` of a config's model, which takes seconds to build, once a process."""
    return _alike(empty(kind, kind.config_class.from_dict(json.loads(config))), depth)


def _alike(model: PreTrainedModel, depth: int) -> bool:
    """Tells whether a model is a stack of `depth` blocks with the same parameters and attention."""
    if len(set(getattr(model.config, "layer_types", None) or [""])) > 1:
        return False
    found = [[(n, p.shape) for n, p in b.named_parameters()] for b in blocks(model)]
    return len(found) == depth and all(shapes == found[0] for shapes in found)


def _cut(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = depth
    if types := getattr(config, "layer_types", None):
        config.layer_types = types[:depth]
    return config


def _update_flops(cell: Attached) -> int:
    model, method, inputs = cell.model, cell.method, cell.inputs
    model.train()
    with _values_refused(method):
        with torch.device("meta"):
            method.step(model, 1.0)
        with counting() as counter:
            method.loss(model, inputs, model(**inputs)).backward()
    return int(counter.get_total_flops())


def tensors(*things: Any) -> Iterator[Tensor]:
    """Yields all tensors that the objects hold, each once, and their gradients."""
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


@contextmanager
def _values_refused(method: Method) -> Iterator[None]:
    """Turns torch's errors about missing values into one line."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:  # of a method or a model of somebody else
        line = one_line(error)
        raise NeedsWeights(f"{method.name} needs weights to be counted: {line}") from error
