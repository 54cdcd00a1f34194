"""Methods at a pattern and a sparsity where there is no task: for one model, for counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.api import Method
from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.overrides import Overrides, Scalar
from bench.core.pattern import Pattern
from bench.planning import registry
from bench.planning.job import parameters_of
from bench.planning.plan import levels_of, make_cell


@dataclass(frozen=True)
class Setup:
    """A method with its parameters, and the cell that it is told of; task and model are labels."""

    method: Method
    cell: Cell


def setups(
    names: Sequence[str],
    pattern: Pattern | None,
    sparsity: float,
    overrides: Mapping[str, Scalar],
    seed: int = 1,
    label: str = "count",
) -> list[Setup]:
    """Returns the named methods, or all that make the pattern, each with its cell.

    Args:
        names: methods; all registered ones by default.
        pattern: by default each method's first.
        sparsity: where the pattern leaves it free.
        overrides: parameters of the methods.
        seed: of the cells.
        label: stands for task and model in the cells.

    Raises:
        BenchError: no such method, pattern, sparsity or parameter.
    """
    split = Overrides.of(overrides)
    if split.shared:
        wrong = split.shared.flat[0][0]
        raise BenchError(f"--set {wrong}: only parameters of the method can be set here")
    found = []
    for name in names or registry.names("method"):
        method = registry.method(name)
        if pattern and not names and not pattern.made_by(method.patterns):
            continue
        wanted = (pattern,) if pattern else ()
        for made, level in levels_of(method, wanted, (sparsity,), explicit=bool(pattern)):
            cell = make_cell(
                task=label,
                model=label,
                method=name,
                pattern=made,
                sparsity=level,
                seed=seed,
                overrides=split,
            )
            found.append(Setup(method(parameters_of(method, split)), cell))
    if not found:
        raise BenchError(f"no registered method makes {pattern}")
    return found


def one_shot_setup(
    name: str,
    pattern: Pattern | None,
    sparsity: float | None,
    overrides: Mapping[str, Scalar],
    seed: int,
) -> Setup:
    """Returns a method that does not train, with its cell.

    Raises:
        BenchError: no such method, one that trains, or a pattern, sparsity or parameter that
            cannot be.
    """
    if registry.method(name).trains:
        known = [n for n in registry.names("method") if not registry.method(n).trains]
        raise BenchError(f"{name} trains; prune takes one-shot methods: {', '.join(known)}")
    (setup,) = setups([name], pattern, sparsity or 0.0, overrides, seed, "prune")
    cell = setup.cell
    if sparsity is None and not cell.sparsity:
        raise BenchError(f"pattern {cell.pattern} needs --sparsity")
    if sparsity is not None and sparsity != cell.sparsity:
        raise BenchError(f"pattern {cell.pattern} has sparsity {cell.sparsity:g}, not {sparsity:g}")
    return setup
