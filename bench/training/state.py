"""The state of a training as JSON and tensors, and back.

A state is plain data: None, numbers, texts, lists, tuples, dicts and tensors. Anything else is
refused by name, so a checkpoint never holds less than it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError


class Unfit(Exception):
    """A checkpoint does not belong to these objects; some of them may be filled already."""


@dataclass(frozen=True)
class Saved:
    """The parts of a checkpoint; their tensors are read when they are asked for.

    Attributes:
        nodes: the JSON of every part, by its name.
        read: gives the tensor of a name, on the CPU.
    """

    nodes: dict[str, Any]
    read: Callable[[str], Tensor]

    def __getitem__(self, part: str) -> Any:
        """Returns a whole part."""
        return self._value(self.nodes[part])

    def items(self, part: str) -> Iterator[tuple[str, Any]]:
        """Yields the items of a part that is a dict, one tensor in memory at a time."""
        return ((key, self._value(node)) for key, node in self.nodes[part]["dict"])

    def _value(self, node: Any) -> Any:
        """Returns what a node stands for, tensors on the device and in the layout that they had."""
        if isinstance(node, list):
            return [self._value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "tuple" in node:
            return tuple(self._value(item) for item in node["tuple"])
        if "dict" in node:
            return {key: self._value(item) for key, item in node["dict"]}
        tensor, stride = self.read(node["tensor"]), tuple(node["stride"])
        if tensor.stride() == stride:
            return tensor.to(node["on"])
        like = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=node["on"])
        return like.copy_(tensor)


def flatten(parts: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Returns the JSON of some parts and the tensors in them, by the names that it gives them.

    Raises:
        BenchError: something in them is no plain data.
    """
    tensors: dict[str, Tensor] = {}

    def node(x: Any, path: str) -> Any:
        if x is None or type(x) in (bool, int, float, str):
            return x
        if type(x) is Tensor and x.layout == torch.strided:
            name = str(len(tensors))
            tensors[name] = x
            # A fused optimizer takes a moment's memory to lie as the parameter's does.
            stride = torch.empty_like(x, device="meta").stride()
            return {"tensor": name, "on": str(x.device), "stride": stride}
        if type(x) in (list, tuple):
            items = [node(item, f"{path}[{i}]") for i, item in enumerate(x)]
            return items if type(x) is list else {"tuple": items}
        if isinstance(x, dict) and all(type(key) in (int, str) for key in x):
            return {"dict": [[key, node(item, f"{path}.{key}")] for key, item in x.items()]}
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise BenchError(
            f"{path} is a {kind}; a state is made of None, numbers, texts, tensors, and lists, "
            "tuples and dicts of these"
        )

    nodes = {name: node(part, name) for name, part in parts.items()}
    return json.dumps(nodes, separators=(",", ":")), tensors


def of_model(model: nn.Module) -> dict[str, Tensor | None]:
    """Returns every parameter and buffer by its name.

    Unlike `state_dict`, buffers that are None are among them: some get a value during training.
    """
    values = {name: held[key] for name, (held, key) in _places(model).items()}
    return {name: None if x is None else x.detach() for name, x in values.items()}


@torch.no_grad()
def load_model(model: nn.Module, values: Iterable[tuple[str, Tensor | None]]) -> None:
    """Fills a model with what `of_model` returned.

    Parameters and buffers stay the tensors that they are, so optimizers go on pointing at them. A
    buffer that was None, or of another shape, becomes a new one.

    Raises:
        Unfit: the names or the parameters' shapes are others.
    """
    places = _places(model)
    for name, new in values:
        if name not in places:
            raise Unfit(f"the model has no {name}")
        held, key = places.pop(name)
        old = held[key]
        if new is not None and old is not None and new.shape == old.shape:
            old.copy_(new)
        elif isinstance(old, nn.Parameter):
            raise Unfit(f"{name} has another shape")
        else:
            held[key] = new
    if places:
        raise Unfit(f"the checkpoint has no {min(places)}")


def _places(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Returns where a model keeps its parameters and buffers, by name; a shared one once."""
    found, seen = {}, set()
    for prefix, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for key, x in held.items():
                if x is None and held is module._parameters:
                    continue  # a layer without a bias; unlike a buffer, it never gets one
                if x is None or id(x) not in seen:
                    seen.add(id(x))
                    found[f"{prefix}.{key}"] = (held, key)
    return found
