"""Suites: named sets of cells."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.core.errors import BenchError, first_error, unknown
from bench.core.overrides import Overrides, OverridesField
from bench.core.pattern import UNSTRUCTURED, PatternField
from bench.core.run_settings import DEFAULTS, RunSettings

SUITES = Path(__file__).parent.parent / "suites"


class Suite(BaseModel):
    """A named set of cells (`bench/suites/*.toml`).

    Attributes:
        baselines: methods that are always run along, whatever `--method` says.
        methods: what is run without `--method`; empty means every registered method.
        patterns: a method takes those that it can make, else its own first one.
        settings: how its cells are run, from the table `[trainer]`.
        average: tasks whose mean score the tables state, as a paper's average does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    description: str = ""
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("dense",)
    patterns: tuple[PatternField, ...] = (UNSTRUCTURED,)
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (1,)
    average: tuple[str, ...] = ()
    settings: RunSettings = DEFAULTS
    budget: str = "default"
    overrides: OverridesField = Overrides()


def suite_names() -> list[str]:
    """Names of the suites that ship with the project."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Loads a shipped suite by name, or any TOML file by path.

    Raises:
        BenchError: no such suite, or a field it does not know.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    try:
        fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = RunSettings.of(fields.pop("trainer", {}))
        return Suite(name=path.stem, settings=settings, **fields)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise BenchError(f"{path}: not a suite: {error}") from None
    except ValidationError as error:
        raise BenchError(f"{path}: not a suite: {first_error(error)}") from None
