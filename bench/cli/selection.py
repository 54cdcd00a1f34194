"""Flags that choose cells, and the jobs that they choose."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.cli.flags import MANY, add_settings, positive
from bench.cli.shelves import Shelves
from bench.core.errors import BenchError

if TYPE_CHECKING:
    from bench.core.store import Store
    from bench.planning.job import Job
    from bench.planning.plan import Planned
    from bench.planning.suites import Suite


def add_selection(command: argparse.ArgumentParser, seeds: bool = True) -> None:
    """Adds the flags that choose cells; `tune` has a seed of its own."""
    command.add_argument(
        "--suite",
        default="quick",
        metavar="NAME",
        help="name of a suite, or a TOML file (default: quick)",
    )
    command.add_argument("--method", **MANY, help="default: the suite's; its baselines are added")
    command.add_argument("--task", **MANY, help="default: the suite's")
    command.add_argument("--model", **MANY, help="slugs, hub ids or folders (default: the suite's)")
    command.add_argument("--pattern", **MANY, help="unstructured, 2:4, block:16x16, heads, …")
    command.add_argument(
        "--sparsity",
        **{**MANY, "metavar": "S"},
        type=float,
        help="fractions to prune (default: the suite's)",
    )
    if seeds:
        command.add_argument(
            "--seeds", **{**MANY, "metavar": "K"}, type=int, help="default: the suite's"
        )
    command.add_argument("--budget", metavar="NAME", help="name of one of the task's budgets")
    command.add_argument(
        "--limit",
        type=positive,
        metavar="K",
        help="score at most K items; short for --set budget.items=K",
    )
    command.add_argument(
        "--quantize",
        metavar="Q",
        help="round the finished weights to int8 or int4; short for --set export.quantize=Q",
    )
    command.add_argument(
        "--embeddings",
        metavar="Q",
        help="with --quantize: also round embeddings (default: no); short for "
        "--set export.embeddings=Q",
    )
    command.add_argument(
        "--group",
        type=int,
        metavar="G",
        help="with --quantize: inputs that share a scale, 64 or 128 (default: 64); short for "
        "--set export.group=G",
    )
    add_settings(
        command,
        "a parameter of the method (lr=1e-4), of the budget (budget.steps=200) or of the "
        "quantization (export.asymmetric=true)",
    )


def add_smoke(command: argparse.ArgumentParser) -> None:
    """Adds --smoke."""
    command.add_argument(
        "--smoke",
        action="store_true",
        help="try each kind of cell on a tiny model and a synthetic task; no record is kept",
    )


def resolve(options: argparse.Namespace, tuned: bool = True) -> tuple[Suite, Shelves, list[Job]]:
    """Returns the suite with the user's changes, where records lie, and its jobs.

    Args:
        options: the flags of `add_selection`.
        tuned: whether a suite that asks for chosen settings gets them.
    """
    from bench.core.overrides import Overrides, parse_settings
    from bench.core.pattern import parse_pattern
    from bench.core.tuning import NO_CHOICES
    from bench.planning.plan import expand
    from bench.planning.suites import load_suite
    from bench.sources.catalog import adopt

    shelves = Shelves.of(options)
    wanted: dict[str, tuple[Any, ...]] = {
        "tasks": tuple(options.task or ()),
        "models": tuple(adopt(name) for name in options.model or ()),
        "methods": tuple(options.method or ()),
        "patterns": tuple(parse_pattern(text) for text in options.pattern or ()),
        "sparsities": tuple(options.sparsity or ()),
        "seeds": tuple(options.seeds or ()),
    }
    flat = parse_settings(options.set)
    short = {
        "budget.items": options.limit,
        "export.quantize": options.quantize,
        "export.embeddings": options.embeddings,
        "export.group": options.group,
    }
    flat |= {name: value for name, value in short.items() if value is not None}
    suite = load_suite(options.suite).narrowed(wanted).changed(Overrides.of(flat), options.budget)
    choices = shelves.choices() if tuned else NO_CHOICES
    jobs = expand(suite, bool(options.pattern), choices)
    _check_all_used(wanted, suite.name, jobs)
    if getattr(options, "smoke", False):
        from bench.planning.twins import twins

        jobs = twins(jobs)
    return suite, shelves, jobs


def _check_all_used(wanted: Mapping[str, Sequence[Any]], suite: str, jobs: Sequence[Job]) -> None:
    """Refuses what was asked for and is in no cell, for example a pattern that no method makes."""
    named = wanted["methods"]
    cells = [job.cell for job in jobs if not named or job.cell.method in named]
    for name in ("task", "model", "method", "pattern", "sparsity"):
        used = {getattr(cell, name) for cell in cells}
        given = wanted["sparsities" if name == "sparsity" else f"{name}s"]
        if left := [str(value) for value in given if value not in used]:
            raise BenchError(
                f"no cell for {name} {', '.join(left)} with the rest of what was asked for; "
                f"`sparsebench plan --suite {suite}` lists all"
            )


def planned(options: argparse.Namespace, store: Store, jobs: Sequence[Job]) -> list[Planned]:
    """Plans the jobs by the flags --rerun and --retry-failed."""
    from bench.planning.plan import plan

    rerun = getattr(options, "rerun", False)
    return plan(jobs, store, rerun, getattr(options, "retry_failed", True))
