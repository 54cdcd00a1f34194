"""A cell with its names resolved."""

from __future__ import annotations

import dataclasses
import difflib

from bench.api import Method
from bench.core.cell import REFERENCE, Budget, Cell
from bench.core.errors import BenchError, unknown
from bench.core.overrides import QUANTIZE, Scalar, own_overrides
from bench.core.record import Versions
from bench.planning import registry


def budget_of(cell: Cell) -> Budget:
    """The cell's budget in numbers.

    Raises:
        BenchError: no such budget, no such field, or more items than the task has.
    """
    task = registry.task(cell.task)
    budgets = task.budgets
    if cell.budget not in budgets:
        raise unknown("budget", cell.budget, budgets)
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
