"""Finds methods and tasks by name: the built-in ones and those of installed packages.

The built-in names stand in `methods/__init__.py` and `tasks/__init__.py`. Other packages register
with the entry points `sparsebench.methods` and `sparsebench.tasks`. A module is imported only when
its name is asked for.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from bench.api import Method, Task
from bench.core.cell import Cell
from bench.core.errors import BenchError, unknown
from bench.core.record import Record
from bench.core.record_parts import Versions

Kind = Literal["method", "task"]


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    group = f"sparsebench.{kind}s"
    builtin: dict[str, str] = importlib.import_module(f"{kind}s").BUILTIN
    entries = {name: EntryPoint(name, value, group) for name, value in builtin.items()}
    for entry in entry_points(group=group):
        if entry.name in entries:
            raise BenchError(f"two packages register the {kind} {entry.name!r}; uninstall one")
        entries[entry.name] = entry
    return entries


def names(kind: Kind) -> list[str]:
    """Returns the registered names: built-in ones first, in their order."""
    return list(_entries(kind))


def builtin(kind: Kind) -> list[str]:
    """Returns the names that ship with the project, without those of installed packages."""
    return list(importlib.import_module(f"{kind}s").BUILTIN)


def is_known(cell: Cell) -> bool:
    """Returns whether the cell's task and method are registered here."""
    return cell.task in _entries("task") and cell.method in _entries("method")


def is_stale(record: Record) -> bool:
    """Returns whether a record was made by another version of its method or task.

    A mean is stale if one of its members is.
    """
    return any(map(_is_stale, record.members))


def _is_stale(record: Record) -> bool:
    cell = record.cell
    if not is_known(cell):
        return False
    present = Versions(method=method(cell.method).version, task=task(cell.task).version)
    return record.versions != present


def training_methods() -> list[type[Method]]:
    """Returns all registered methods that train."""
    return [kind for kind in map(method, names("method")) if kind.trains]


def _load(kind: Kind, name: str) -> Any:
    entries = _entries(kind)
    if name not in entries:
        raise unknown(kind, name, entries)
    return entries[name].load()


def method(name: str) -> type[Method]:
    """Returns the method's class.

    Raises:
        BenchError: there is no such method, or its class has another name.
    """
    kind: type[Method] = _load("method", name)
    if kind.name != name:
        raise BenchError(f"method {name!r} is registered with a class that is named {kind.name!r}")
    return kind


@cache
def task(name: str) -> Task:
    """Returns the task, made from its family's class: `glue/rte` → `Glue("glue/rte")`.

    Raises:
        BenchError: there is no such task.
    """
    instance: Task = _load("task", name)(name)
    return instance
