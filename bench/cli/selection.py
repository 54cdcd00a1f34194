"""Flags that choose cells, and the cells that they choose."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.core.cell import Cell
from bench.core.overrides import QUANTIZE, parse_settings
from bench.core.store import Store
from bench.planning import plan
from bench.planning.plan import Planned
from bench.planning.suites import Suite, load_suite


def add_selection(command: argparse.ArgumentParser) -> None:
    """Adds the flags that choose cells."""
    many: dict[str, Any] = {"action": "extend", "nargs": "+", "metavar": "NAME"}
    command.add_argument("--suite", default="quick", help="a suite's name or a TOML file")
    command.add_argument("--method", **many, help="methods, beside the suite's baselines")
    command.add_argument("--task", **many)
    command.add_argument("--model", **many, help="slugs, hub ids or folders")
    command.add_argument("--pattern", **many, help="unstructured, 2:4, block:16x16, heads, …")
    command.add_argument("--sparsity", **{**many, "metavar": "S"}, type=float)
    command.add_argument("--seeds", **{**many, "metavar": "K"}, type=int)
    command.add_argument("--budget", metavar="NAME", help="one of the task's budgets")
    command.add_argument(
        "--limit",
        type=positive,
        metavar="K",
        help="score so many items at most; short for --set budget.items=K",
    )
    command.add_argument(
        "--quantize",
        metavar="Q",
        help="int8 or int4: round the finished models' weights; short for --set export.quantize=Q",
    )
    command.add_argument(
        "--embeddings",
        metavar="Q",
        help="with --quantize, round embeddings too (no); short for --set export.embeddings=Q",
    )
    command.add_argument(
        "--group",
        type=int,
        metavar="G",
        help="with --quantize, 64 or 128 inputs a scale (64); short for --set export.group=G",
    )
    command.add_argument(
        "--set",
        **{**many, "metavar": "KEY=VALUE"},
        help="a parameter of the method (lr=1e-4), of the budget (budget.steps=200) or of "
        "quantizing (export.asymmetric=true: a zero point a group)",
    )


def add_tls(command: argparse.ArgumentParser) -> None:
    """Adds the flags for dask's certificates."""
    for name, what in (
        ("ca-file", "certificates that are trusted"),
        ("cert", "this side's certificate"),
        ("key", "its private key"),
    ):
        command.add_argument(f"--tls-{name}", metavar="PEM", help=f"dask's TLS: {what}")


def add_folders(command: argparse.ArgumentParser) -> None:
    """Adds --results and --reports."""
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument("--reports", type=Path, default=Path("reports"), metavar="DIR")


def positive(text: str) -> int:
    """Parses a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def resolve(options: argparse.Namespace) -> tuple[Suite, Store, list[Cell]]:
    """Returns the suite with its changes, the record store, and the cells."""
    suite = load_suite(options.suite)
    changes: dict[str, Any] = {}
    for field, values in (
        ("tasks", options.task),
        ("patterns", options.pattern),
        ("sparsities", options.sparsity),
        ("seeds", options.seeds),
    ):
        if values:
            changes[field] = tuple(values)
    if options.model:
        from bench.sources.catalog import adopt

        changes["models"] = tuple(adopt(name) for name in options.model)
    if options.budget:
        changes["budget"] = options.budget
    overrides = dict(suite.overrides) | parse_settings(options.set or ())
    if options.limit:
        overrides["budget.items"] = options.limit
    for field in ("quantize", "embeddings", "group"):
        if (value := getattr(options, field)) is not None:
            overrides[f"{QUANTIZE}{field}"] = value
    changes["overrides"] = tuple(sorted(overrides.items()))
    suite = dataclasses.replace(suite, **changes)
    cells = plan.expand(suite, options.method or (), explicit=bool(options.pattern))
    return suite, Store(options.results), cells


def planned(options: argparse.Namespace, store: Store, cells: Sequence[Cell]) -> list[Planned]:
    """Plans the cells by the flags --rerun and --retry-failed."""
    flags = (getattr(options, name, False) for name in ("rerun", "retry_failed"))
    return plan.plan(cells, store, *flags)
