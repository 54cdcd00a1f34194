"""Suites: named sets of cells."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, unknown
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern
from bench.core.run_settings import DEFAULTS, RunSettings

SUITES = Path(__file__).parent.parent / "suites"


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
    means: RunSettings = DEFAULTS
    budget: str = "default"
    overrides: tuple[tuple[str, Scalar], ...] = ()


def suite_names() -> list[str]:
    """Names of the suites that ship with the project."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or any TOML file by path.

    Raises:
        BenchError: no such suite, or a field it does not know.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        means = RunSettings.of(fields.pop("trainer", {}))
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        lists["overrides"] = tuple(sorted(fields.get("overrides", {}).items()))
        return Suite(name=path.stem, means=means, **lists)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise BenchError(f"{path}: not a suite: {error}") from None
