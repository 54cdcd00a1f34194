"""All that can change in some objects, as JSON and tensors, and back into objects made anew.

A method may keep its state wherever it likes: in buffers, in attributes of a parametrization, in
lists of masks, in the optimizer. `take` follows every attribute and every element from the roots
on; `put_back` fills the objects that the same code has made again in another process. Objects stay
what they are (parameters keep their identity, so optimizers and hooks go on pointing at them), and
what is reachable twice is one thing again.

What could hold state that is not seen is refused, never skipped: an iterator, a NumPy generator, a
file. So whatever was taken is all there was. Out of sight are global and class variables only.
"""

from __future__ import annotations

import json
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.training import object_state
from bench.training.object_state import Unseen

Roots = dict[str, Any]

SEQUENCES = (list, tuple, set, frozenset, deque)
MAPPINGS = (dict, OrderedDict, defaultdict)

_ABSENT: Any = object()


class Unfit(Exception):
    """What was taken does not belong to these objects; some of them may be filled already."""


def take(roots: Roots) -> tuple[str, list[Tensor]]:
    """The state of everything that the roots reach.

    Returns:
        JSON, and the memory of the tensors in it, as bytes (n,), by their place in this list.

    Raises:
        Unseen: there is something whose state cannot be told.
    """
    writer = _Writer()
    try:
        tree = {name: writer.node(root, name) for name, root in roots.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # a set without order, an empty cell
        raise Unseen(str(error)) from None
    return json.dumps(tree, separators=(",", ":")), writer.memory


def put_back(text: str, memory: Callable[[int], Tensor], roots: Roots) -> Roots:
    """Fills the roots with what `take` has found.

    Args:
        text: the JSON.
        memory: the bytes of a number.
        roots: as they were, made anew; one that is missing is made if it is plain data.

    Raises:
        Unfit: the objects are not those of `take`.
    """
    reader = _Reader(memory)
    try:
        return {
            name: reader.node(node, roots.get(name, _ABSENT), name)
            for name, node in json.loads(text).items()
        }
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Unfit(f"{type(error).__name__}: {error}") from None


class _Writer:
    """Objects → nodes; each object once, by number, and each tensor's memory once."""

    def __init__(self) -> None:
        self.memory: list[Tensor] = []
        self.storages: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.alive: list[Any] = []  # an id is free for another object when its owner is gone

    def node(self, x: Any, path: str) -> Any:
        """The node of anything; `path` is for messages."""
        if x is None or type(x) in (bool, int, float, str):
            return x
        if (fixed := object_state.constant(x)) is not None:
            return {"is": fixed}
        if id(x) in self.numbers:
            return {"again": self.numbers[id(x)]}
        self.alive.append(x)
        number = self.numbers[id(x)] = len(self.numbers)
        return {"n": number, "type": object_state.name_of(x), **self._content(x, path)}

    def _content(self, x: Any, path: str) -> dict[str, Any]:
        if isinstance(x, Tensor):
            return self._tensor(x, path)
        if isinstance(x, torch.Generator):
            return {"generator": self._bytes(x.get_state())}
        if isinstance(x, types.MethodType):
            return {"of": self.node(x.__self__, f"{path}.__self__"), "name": x.__name__}
        if isinstance(x, types.FunctionType):
            cells = [cell.cell_contents for cell in x.__closure__ or ()]
            return {"cells": self._nodes(cells, path), "name": x.__qualname__}
        if isinstance(x, tuple) or type(x) in SEQUENCES:
            return {"items": self._nodes(sorted(x) if isinstance(x, (set, frozenset)) else x, path)}
        if type(x) in MAPPINGS:
            if object_state.are_hooks(x):
                return {"hooks": self._nodes(x.values(), path)}
            return {"keys": self._nodes(x, path), "values": self._nodes(x.values(), path)}
        object_state.refuse_hidden_state(x, path)
        return {
            "attributes": {k: self.node(v, f"{path}.{k}") for k, v in object_state.held(x).items()}
        }

    def _nodes(self, items: Iterable[Any], path: str) -> list[Any]:
        return [self.node(item, f"{path}[{i}]") for i, item in enumerate(items)]

    def _tensor(self, x: Tensor, path: str) -> dict[str, Any]:
        if x.layout != torch.strided or x.is_meta or x.is_quantized or x.grad_fn is not None:
            raise Unseen(f"{path} is a tensor with a history, without values or of another layout")
        storage = x.untyped_storage()
        place = storage.data_ptr()
        if place not in self.storages or not storage.nbytes():
            self.storages[place] = self._bytes(x)
        return {
            "memory": self.storages[place],
            "layout": _layout(x),
            "on": str(x.device),
            "trains": x.requires_grad,
            "grad": self.node(x.grad, f"{path}.grad"),
        }

    def _bytes(self, x: Tensor) -> int:
        self.memory.append(_bytes(x))
        return len(self.memory) - 1


class _Reader:
    """Nodes → objects, the ones that are there if they can be filled."""

    def __init__(self, memory: Callable[[int], Tensor]) -> None:
        self.memory = memory
        self.objects: dict[int, Any] = {}
        self.claimed: set[int] = set()
        self.alive: list[Any] = []
        self.filled: dict[int, Tensor] = {}
        self.places: set[int] = set()

    def node(self, saved: Any, live: Any, path: str) -> Any:
        """What the node stands for: `live`, filled, or something new of plain data."""
        if not isinstance(saved, dict):
            return saved
        if "is" in saved:
            if live is _ABSENT or object_state.constant(live) != saved["is"]:
                raise Unfit(f"{path} is not {saved['is']} any more")
            return live
        if "again" in saved:
            return self.objects[saved["again"]]
        if id(live) in self.claimed or object_state.name_of(live) != saved["type"]:
            live = _ABSENT  # another one's, or of another type: made anew if it can be
        if live is not _ABSENT:
            self.claimed.add(id(live))
            self.alive.append(live)
        found = self.objects[saved["n"]] = self._content(saved, live, path)
        return found

    def _content(self, saved: dict[str, Any], live: Any, path: str) -> Any:
        if "memory" in saved:
            return self._tensor(saved, live, path)
        if "items" in saved:
            return self._sequence(saved, live, path)
        if "keys" in saved:
            return self._mapping(saved, live, path)
        if live is _ABSENT:
            raise Unfit(f"{path} is a {saved['type']} that came up during training")
        self.objects[saved["n"]] = live  # before its parts, which may point back
        if "generator" in saved:
            live.set_state(self.memory(saved["generator"]))
        elif "of" in saved:
            self._same(saved["of"], live.__self__, path)
            _agree(live.__name__, saved["name"], path)
        elif "cells" in saved:
            _agree(live.__qualname__, saved["name"], path)
            for cell, node in zip(live.__closure__, saved["cells"], strict=True):
                cell.cell_contents = self.node(node, cell.cell_contents, path)
        elif "hooks" in saved:
            for node, hook in zip(saved["hooks"], live.values(), strict=True):
                self._same(node, hook, path)
        else:
            self._attributes(saved["attributes"], live, path)
        return live

    def _same(self, saved: Any, live: Any, path: str) -> None:
        if self.node(saved, live, path) is not live:
            raise Unfit(f"{path} was another object")

    def _sequence(self, saved: dict[str, Any], live: Any, path: str) -> Any:
        before = [] if live is _ABSENT or isinstance(live, (set, frozenset)) else list(live)
        if live is _ABSENT:
            live = _built(saved["type"], SEQUENCES, path)
        if not isinstance(live, (tuple, frozenset)):
            self.objects[saved["n"]] = live
        before += [_ABSENT] * (len(saved["items"]) - len(before))
        items = [
            self.node(node, old, f"{path}[{i}]")
            for i, (node, old) in enumerate(zip(saved["items"], before, strict=False))
        ]
        if isinstance(live, (tuple, frozenset)):
            kept = len(items) == len(live) and all(map(_equal, items, live))
            return live if kept else _of_items(type(live), items)
        live.clear()
        (live.update if isinstance(live, set) else live.extend)(items)
        return live

    def _mapping(self, saved: dict[str, Any], live: Any, path: str) -> Any:
        live = _built(saved["type"], MAPPINGS, path) if live is _ABSENT else live
        self.objects[saved["n"]] = live
        pairs = {}
        for key_node, node in zip(saved["keys"], saved["values"], strict=True):
            key = self.node(key_node, _ABSENT, path)
            pairs[key] = self.node(node, live.get(key, _ABSENT), f"{path}[{key!s:.40}]")
        live.clear()
        live.update(pairs)
        return live

    def _attributes(self, saved: dict[str, Any], live: Any, path: str) -> None:
        before = object_state.held(live)
        for name in before.keys() - saved.keys():
            object.__delattr__(live, name)
        for name, node in saved.items():
            old = before.get(name, _ABSENT)
            new = self.node(node, old, f"{path}.{name}")
            if new is old:
                continue
            if name in getattr(live, "__dict__", {}) or name not in object_state.slots(type(live)):
                vars(live)[name] = new  # past frozen dataclasses and nn.Module's own __setattr__
            else:
                object.__setattr__(live, name, new)

    def _tensor(self, saved: dict[str, Any], live: Any, path: str) -> Tensor:
        number, layout = saved["memory"], saved["layout"]
        fits = live is not _ABSENT and _layout(live) == layout and str(live.device) == saved["on"]
        if number not in self.filled:
            value = self.memory(number)
            own = _bytes(live) if fits else torch.empty_like(value, device=saved["on"])
            place = own.data_ptr()
            if own.numel() != value.numel() or place in self.places:
                own = torch.empty_like(value, device=saved["on"])
            own.copy_(value)
            self.filled[number] = own
            self.places.add(own.data_ptr())
        own = self.filled[number]
        if not fits or _bytes(live).data_ptr() != own.data_ptr():
            dtype, shape, stride, offset = layout
            new = torch.empty(0, dtype=getattr(torch, dtype), device=own.device)
            new.set_(own.untyped_storage(), offset, shape, stride)
            live = nn.Parameter(new, False) if "Parameter" in saved["type"] else new
        live.requires_grad_(saved["trains"])
        live.grad = self.node(saved["grad"], live.grad if fits else _ABSENT, f"{path}.grad")
        return live  # type: ignore[no-any-return]


def _bytes(x: Tensor) -> Tensor:
    """The memory under a tensor, all of it, as bytes that can be written to: (n,)."""
    raw = torch.empty(0, dtype=torch.uint8, device=x.device)
    return raw.set_(x.untyped_storage())


def _layout(x: Tensor) -> list[Any]:
    """Where the elements lie in the memory."""
    dtype = str(x.dtype).removeprefix("torch.")
    return [dtype, list(x.shape), list(x.stride()), x.storage_offset()]


def _built(name: str, kinds: Sequence[type], path: str) -> Any:
    for kind in kinds:
        if f"{kind.__module__}.{kind.__qualname__}" == name and kind is not defaultdict:
            return kind()
    raise Unfit(f"{path} is a {name} that came up during training")


def _of_items(kind: Any, items: list[Any]) -> Any:
    """A tuple, a NamedTuple or a frozenset."""
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def _equal(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)


def _agree(a: str, b: str, path: str) -> None:
    if a != b:
        raise Unfit(f"{path} was {b}, not {a}")
