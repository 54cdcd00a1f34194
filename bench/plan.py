"""Which cells there are, in which state, and which dense cell each stands on."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import assets, registry
from bench.api import BenchError, Budget, Cell, Method
from bench.cell import QUANTIZE, REFERENCE, Scalar, makes
from bench.record import Versions
from bench.registry import Suite
from bench.store import State, Store

DEFAULT_PATTERN = {"N:M": "2:4", "block:RxC": "block:16x16"}


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
        kept = overrides if name in wanted else _shared(overrides)
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


def own_sparsity(pattern: str) -> float | None:
    """The sparsity that the pattern itself fixes; None where it is free.

    Raises:
        BenchError: N:M that prunes nothing.
    """
    if pattern == "dense":
        return 0.0
    if not makes(("N:M",), pattern):
        return None
    kept, group = map(int, pattern.split(":"))
    if kept >= group:
        raise BenchError(f"pattern {pattern}: N:M keeps N of M, so N must be below M")
    return round(1 - kept / group, 4)


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


def budget_of(cell: Cell) -> Budget:
    """The cell's budget in numbers.

    Raises:
        BenchError: no such budget, no such field, or more items than the task has.
    """
    task = registry.task(cell.task)
    budgets = task.budgets
    if cell.budget not in budgets:
        raise registry.unknown("budget", cell.budget, budgets)
    changes = {k.removeprefix("budget."): v for k, v in cell.overrides if k.startswith("budget.")}
    try:
        budget = dataclasses.replace(budgets[cell.budget], **changes)  # type: ignore[arg-type]
    except TypeError:
        known = [f"budget.{f.name}" for f in dataclasses.fields(Budget)]
        raise BenchError(f"overrides {sorted(changes)}: a budget has {', '.join(known)}") from None
    if budget.items and budget.items > task.limit:
        most = f"has {task.limit} items" if task.limit else "is always scored on all its items"
        raise BenchError(f"budget.items={budget.items}: {cell.task} {most}")
    return budget


def hyper_of(cell: Cell) -> dict[str, Scalar]:
    """The cell's departures from the method's default parameters."""
    return own_overrides(cell.overrides)


def own_overrides(overrides: Iterable[tuple[str, Scalar]]) -> dict[str, Scalar]:
    """Those of the method itself, without the budget's and the quantization's."""
    return {k: v for k, v in overrides if not k.startswith(("budget.", QUANTIZE))}


def is_quantized_reference(cell: Cell) -> bool:
    """Whether quantizing is all that makes the cell another one than its dense reference."""
    shared = tuple((k, v) for k, v in cell.overrides if not k.startswith(QUANTIZE))
    unquantized = cell.model_copy(update={"overrides": shared})
    return unquantized != cell and unquantized == reference_of(cell)


def check_overrides(method: type[Method], overrides: dict[str, Scalar]) -> None:
    """Refuses parameters that the method does not have, or of another type.

    Raises:
        BenchError: naming the parameter and the nearest ones.
    """
    known = {f.name: f.default for f in dataclasses.fields(method.Params)}
    for name, value in overrides.items():
        if name.startswith(("budget.", QUANTIZE)):
            continue
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise BenchError(f"method {method.name} has no parameter {name!r}: {hint}")
        default = known[name]
        wanted = type(default)
        fits = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
        if default is not None and not (fits or (wanted is float and type(value) is int)):
            raise BenchError(f"{method.name}.{name} takes a {wanted.__name__}, not {value!r}")


def trains(cell: Cell) -> bool:
    """Whether the cell trains: its method and its task do, and it is not only quantized."""
    task = registry.task(cell.task)
    if not (registry.method(cell.method).trains and task.trains):
        return False
    # Without fine-tuning, the dense model is the pretrained one.
    return (task.finetunes and not is_quantized_reference(cell)) or cell.method != REFERENCE


def versions_of(cell: Cell) -> Versions:
    """Present versions of the cell's method and task."""
    return Versions(
        method=registry.method(cell.method).version, task=registry.task(cell.task).version
    )


def reference_of(cell: Cell) -> Cell:
    """The dense cell of the same task, model, seed and budget."""
    budget = tuple(o for o in cell.overrides if o[0].startswith("budget."))
    return Cell(
        task=cell.task,
        model=cell.model,
        method=REFERENCE,
        pattern="dense",
        sparsity=0.0,
        seed=cell.seed,
        budget=cell.budget,
        overrides=budget,
    )


def needs_reference(cell: Cell) -> bool:
    """Whether the cell stands on the dense cell's trained weights."""
    kind = registry.method(cell.method)
    method = kind(kind.Params(**hyper_of(cell)))
    needs = method.needs_dense or is_quantized_reference(cell)
    return needs and registry.task(cell.task).finetunes


def trained_dir(cell: Cell) -> Path:
    """Where the trained weights of a dense cell are cached."""
    return assets.cache_dir() / "trained" / _folder_name(cell)


def scratch_dir(cell: Cell) -> Path:
    """Where the checkpoints of a cell are while it trains."""
    return assets.cache_dir() / "scratch" / _folder_name(cell)


def _folder_name(cell: Cell) -> str:
    versions = versions_of(cell)
    return f"{cell.key[:16]}-{versions.method}.{versions.task}"


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


def _shared(overrides: dict[str, Scalar]) -> dict[str, Scalar]:
    """What baselines have in common with the methods: budget and quantization."""
    return {k: v for k, v in overrides.items() if k.startswith(("budget.", QUANTIZE))}


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, values as TOML has them or else as text."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BenchError(f"--set {pair}: write KEY=VALUE, as lr=1e-4")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found
