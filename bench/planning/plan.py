"""Which cells there are, in which state, and which dense cell each stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bench.api import Method
from bench.core.cell import REFERENCE, Cell
from bench.core.errors import BenchError
from bench.core.overrides import shared_overrides
from bench.core.pattern import DEFAULT_PATTERN, makes, own_sparsity
from bench.core.store import State, Store
from bench.planning import registry
from bench.planning.job import budget_of, check_overrides, reference_of, versions_of
from bench.planning.suites import Suite


@dataclass(frozen=True)
class Planned:
    """A cell, what is known of it, and whether running it would change that."""

    cell: Cell
    state: State
    todo: bool


def expand(suite: Suite, methods: Sequence[str] = (), explicit: bool = False) -> list[Cell]:
    """The suite's cells, baselines first.

    Args:
        suite: tasks × models × patterns × sparsities × seeds.
        methods: run these (and the suite's baselines) instead of the suite's.
        explicit: the user named the patterns; a method that cannot make them is an error.

    Raises:
        BenchError: an unknown name, or a cell that cannot be.
    """
    wanted = tuple(methods) or suite.methods or tuple(registry.names("method"))
    names = list(dict.fromkeys([REFERENCE, *suite.baselines, *wanted]))
    names.sort(key=lambda name: name != REFERENCE)
    overrides = dict(suite.overrides)
    cells = []
    for name in names:
        method = registry.method(name)
        kept = overrides if name in wanted else shared_overrides(overrides)
        check_overrides(method, kept)
        points = levels(method, suite, explicit and name in wanted)
        for task in suite.tasks:
            registry.task(task)
            for model in suite.models:
                for pattern, sparsity in points:
                    for seed in suite.seeds:
                        cells.append(
                            make_cell(
                                task=task,
                                model=model,
                                method=name,
                                pattern=pattern,
                                sparsity=sparsity,
                                seed=seed,
                                budget=suite.budget,
                                overrides=tuple(kept.items()),
                            )
                        )
    for cell in cells:
        budget_of(cell)
    # Recovery is against unquantized weights.
    quantized = [c for c in cells if c.quantization and c.method == REFERENCE]
    return list(dict.fromkeys([*map(reference_of, quantized), *cells]))


def levels(method: type[Method], suite: Suite, explicit: bool) -> list[tuple[str, float]]:
    """(pattern, sparsity) points of a method; dense and N:M have a sparsity of their own."""
    patterns = [p for p in suite.patterns if makes(method.patterns, p)]
    if explicit and (refused := [p for p in suite.patterns if p not in patterns]):
        raise BenchError(
            f"method {method.name} makes {', '.join(method.patterns)}, not {', '.join(refused)}"
        )
    if not patterns:
        first = method.patterns[0]
        patterns = [DEFAULT_PATTERN.get(first, first)]
    found = []
    for pattern in patterns:
        own = own_sparsity(pattern)
        sparsities = suite.sparsities if own is None else (own,)
        found += [(pattern, sparsity) for sparsity in sparsities]
    return found


def make_cell(**fields: Any) -> Cell:
    """A cell.

    Raises:
        BenchError: a field that cannot be, in one line.
    """
    try:
        return Cell(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BenchError(f"{place} {first['input']!r}: {first['msg']}") from None


def plan(
    cells: Sequence[Cell], store: Store, rerun: bool = False, retry_failed: bool = True
) -> list[Planned]:
    """Every cell with its state, dense ones first.

    Args:
        cells: wanted.
        store: the records that there are.
        rerun: run what is done again.
        retry_failed: run what has failed again.
    """
    kept = {"done"} | (set() if retry_failed else {"failed"})
    planned = []
    for cell in sorted(cells, key=lambda cell: cell.method != REFERENCE):
        state = store.state(cell, versions_of(cell))
        planned.append(Planned(cell, state, rerun or state not in kept))
    return planned
