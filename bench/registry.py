"""Names → methods, tasks and suites: the built-in ones and those of installed packages.

The built-in names stand in `methods/__init__.py` and `tasks/__init__.py`; other packages register
with the entry points `sparsebench.methods` and `sparsebench.tasks`. Nothing is imported before its
name is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from bench.api import BenchError, Method, Pattern, Task
from bench.cell import Scalar
from bench.parallel import ALONE, Means

Kind = Literal["method", "task"]

SUITES = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Suite:
    """A named set of cells (`bench/suites/*.toml`).

    Attributes:
        baselines: methods that are always run along, whatever `--method` says.
        methods: what is run without `--method`; empty means every registered method.
        patterns: a method takes those it can make, else its own first one.
        means: what its cells are run with, of the table `[trainer]`.
        average: tasks whose mean score the tables state, as a paper's average does.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("dense",)
    patterns: tuple[Pattern, ...] = ("unstructured",)
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (1,)
    average: tuple[str, ...] = ()
    means: Means = ALONE
    budget: str = "default"
    overrides: tuple[tuple[str, Scalar], ...] = ()


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
    """Registered names; the built-in ones first, in their order."""
    return list(_entries(kind))


def builtin(kind: Kind) -> list[str]:
    """Names that ship with the project, whatever else is installed."""
    return list(importlib.import_module(f"{kind}s").BUILTIN)


def unknown(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """One line: the name, the nearest known ones, or how to list them."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `sparsebench list {kind}s`"
    return BenchError(f"unknown {kind} {name!r}: {hint}")


def _load(kind: Kind, name: str) -> Any:
    entries = _entries(kind)
    if name not in entries:
        raise unknown(kind, name, entries)
    return entries[name].load()


def method(name: str) -> type[Method]:
    """The method's class.

    Raises:
        BenchError: no such method, or the class bears another name.
    """
    found: type[Method] = _load("method", name)
    if found.name != name:
        raise BenchError(f"method {name!r} is registered with a class that is named {found.name!r}")
    return found


@cache
def task(name: str) -> Task:
    """The task, made from its family's class: `glue/rte` → `Glue("glue/rte")`.

    Raises:
        BenchError: no such task.
    """
    made: Task = _load("task", name)(name)
    return made


def suite_names() -> list[str]:
    """Names of the suites that ship with the project."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def suite(name: str) -> Suite:
    """A shipped suite by name, or any TOML file by path.

    Raises:
        BenchError: no such suite, or a field it does not know.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        means = Means.of(fields.pop("trainer", {}))
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        lists["overrides"] = tuple(sorted(fields.get("overrides", {}).items()))
        return Suite(name=path.stem, means=means, **lists)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise BenchError(f"{path}: not a suite: {error}") from None
