"""Names → methods, tasks and suites: the built-in ones and those of installed packages.

The built-in names stand in `methods/__init__.py` and `tasks/__init__.py`; other packages register
with the entry points `sparsebench.methods` and `sparsebench.tasks`. Nothing is imported before its
name is asked for.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from bench.api import Method, Task
from bench.core.cell import Cell
from bench.core.errors import BenchError, unknown

Kind = Literal["method", "task"]


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    group = f"sparsebench.{kind}s"
    builtin: dict[str, str] = importlib.import_module(f"{kind}s").BUILTIN
    found = {name: EntryPoint(name, value, group) for name, value in builtin.items()}
    for entry in entry_points(group=group):
        if entry.name in found:
            raise BenchError(f"two packages register the {kind} {entry.name!r}; uninstall one")
        found[entry.name] = entry
    return found


def names(kind: Kind) -> list[str]:
    """Returns registered names; the built-in ones first, in their order."""
    return list(_entries(kind))


def builtin(kind: Kind) -> list[str]:
    """Names that ship with the project, whatever else is installed."""
    return list(importlib.import_module(f"{kind}s").BUILTIN)


def is_known(cell: Cell) -> bool:
    """Returns whether the cell's task and method are registered here."""
    return cell.task in _entries("task") and cell.method in _entries("method")


def training_methods() -> list[type[Method]]:
    """Returns all registered methods that train."""
    return [found for found in map(method, names("method")) if found.trains]


def _load(kind: Kind, name: str) -> Any:
    entries = _entries(kind)
    if name not in entries:
        raise unknown(kind, name, entries)
    return entries[name].load()


def method(name: str) -> type[Method]:
    """Returns the method's class.

    Raises:
        BenchError: no such method, or the class bears another name.
    """
    found: type[Method] = _load("method", name)
    if found.name != name:
        raise BenchError(f"method {name!r} is registered with a class that is named {found.name!r}")
    return found


@cache
def task(name: str) -> Task:
    """Makes the task from its family's class: `glue/rte` → `Glue("glue/rte")`.

    Raises:
        BenchError: no such task.
    """
    made: Task = _load("task", name)(name)
    return made
