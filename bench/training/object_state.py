"""What a Python object holds, told without knowing its class (`bench.training.snapshot`)."""

from __future__ import annotations

import contextlib
import enum
import re
import types
import weakref
from pathlib import PurePath
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

CONSTANTS = (
    type,
    enum.Enum,
    types.BuiltinFunctionType,
    types.ModuleType,
    torch.device,
    torch.dtype,
    torch.layout,
    torch.memory_format,
    torch.Size,
    RemovableHandle,  # its number differs from process to process
    weakref.ref,
    range,
    slice,
    bytes,
    complex,
    PurePath,
    re.Pattern,
)
LIBRARIES = {"torch", "transformers", "accelerate", "bench"}
"""Packages whose functions keep nothing of a method in their closures."""


class Unseen(Exception):
    """Something whose state cannot be told; the line says where and what."""


def name_of(x: Any) -> str:
    """The type's full name."""
    return f"{type(x).__module__}.{type(x).__qualname__}"


def constant(x: Any) -> str | None:
    """What identifies something that cannot change; None for all else."""
    if isinstance(x, types.FunctionType):
        library = (x.__module__ or "").partition(".")[0] in LIBRARIES
        return f"{x.__module__}.{x.__qualname__}" if library or not x.__closure__ else None
    if isinstance(x, (type, types.BuiltinFunctionType)):
        return x.__qualname__
    if isinstance(x, (types.ModuleType, RemovableHandle, weakref.ref)):
        return name_of(x)
    return repr(x) if isinstance(x, CONSTANTS) else None


def are_hooks(x: dict[Any, Any]) -> bool:
    """Whether it is a dict of hooks: their keys are numbers that differ between processes."""
    called = (types.FunctionType, types.MethodType)
    return bool(x) and all(type(k) is int and isinstance(v, called) for k, v in x.items())


def slots(kind: type) -> list[str]:
    """Names of the attributes that have a place of their own beside `__dict__`."""
    found = []
    for base in kind.__mro__:
        declared = base.__dict__.get("__slots__", ())
        for name in (declared,) if isinstance(declared, str) else declared:
            private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def held(x: Any) -> dict[str, Any]:
    """All attributes of an object itself."""
    placed = {name: getattr(x, name) for name in slots(type(x)) if hasattr(x, name)}
    return placed | getattr(x, "__dict__", {})


def refuse_hidden_state(x: Any, path: str) -> None:
    """Holds an object to its attributes being all that it has, by pickle's own rules.

    Raises:
        Unseen: they are not: an iterator, a NumPy generator, a file.
    """
    if isinstance(x, (nn.Module, types.SimpleNamespace)):
        return
    own = all(getattr(type(x), n) is getattr(object, n) for n in ("__reduce__", "__reduce_ex__"))
    with contextlib.suppress(TypeError):
        if own:
            object.__reduce_ex__(x, 2)
            return
    raise Unseen(f"{path} is a {name_of(x)}, whose state cannot be seen")
