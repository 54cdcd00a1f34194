"""Methods at a pattern and a sparsity without a task: to prune one model, or to count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.api import Context, Method
from bench.core import seeds
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError
from bench.core.overrides import Overrides, Scalar
from bench.core.pattern import Pattern
from bench.planning import registry
from bench.planning.job import parameters_of
from bench.planning.plan import levels_of, make_cell

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Setup:
    """A method with its parameters, and its cell, whose task and model are only labels."""

    method: Method
    cell: Cell


def context_of(
    cell: Cell,
    budget: Budget,
    model: PreTrainedModel,
    calibration: Callable[[], Iterable[dict[str, Tensor]]],
    teacher: Callable[[], PreTrainedModel],
    device: torch.device,
) -> Context:
    """Makes a method's context for a loaded model. The cell decides what the method draws."""
    import torch  # here, so that `plan` starts without it

    from bench.weights import targets

    return Context(
        cell=cell,
        budget=budget,
        targets=targets.prunable(model),
        calibration=calibration,
        teacher=teacher,
        rng=torch.Generator().manual_seed(seeds.derive("rng", cell.method, cell.seed)),
        device=device,
    )


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
        names: names of methods; by default all registered ones.
        pattern: the pattern; by default each method's first.
        sparsity: fraction of pruned weights, for patterns that do not fix one.
        overrides: parameters of the methods.
        seed: seed of the cells.
        label: name that stands for task and model in the cells.

    Raises:
        BenchError: a method, pattern, sparsity or parameter does not exist or is not allowed.
    """
    split = Overrides.of(overrides)
    if split.shared:
        wrong = split.shared.flat[0][0]
        raise BenchError(f"--set {wrong}: only parameters of the method can be set here")
    chosen = []
    for name in names or registry.names("method"):
        method = registry.method(name)
        if pattern and not names and not pattern.made_by(method.patterns):
            continue
        wanted = (pattern,) if pattern else ()
        for point, level in levels_of(method, wanted, (sparsity,), explicit=bool(pattern)):
            cell = make_cell(
                task=label,
                model=label,
                method=name,
                pattern=point,
                sparsity=level,
                seed=seed,
                overrides=split,
            )
            chosen.append(Setup(method(parameters_of(method, split)), cell))
    if not chosen:
        raise BenchError(f"no registered method makes {pattern}")
    return chosen


def single_setup(
    name: str,
    pattern: Pattern | None,
    sparsity: float | None,
    overrides: Mapping[str, Scalar],
    seed: int,
    *,
    trains: bool,
) -> Setup:
    """Returns one method with its cell.

    Args:
        name: name of the method.
        pattern: the pattern; by default the method's first.
        sparsity: fraction of pruned weights; None for patterns that fix one.
        overrides: parameters of the method.
        seed: seed of the cell.
        trains: whether a method that trains is wanted, or a one-shot method.

    Raises:
        BenchError: there is no such method, it is of the other kind, or a pattern, sparsity or
            parameter is not allowed.
    """
    if registry.method(name).trains is not trains:
        fit = [n for n in registry.names("method") if registry.method(n).trains is trains]
        what = (
            "is a one-shot method: use prune. These train"
            if trains
            else ("trains; prune takes one-shot methods")
        )
        raise BenchError(f"{name} {what}: {', '.join(fit)}")
    label = "train" if trains else "prune"
    (setup,) = setups([name], pattern, sparsity or 0.0, overrides, seed, label)
    cell = setup.cell
    if sparsity is None and cell.pattern.sparsity is None:
        raise BenchError(f"pattern {cell.pattern} needs a sparsity, such as 0.5 (--sparsity 0.5)")
    if sparsity is not None and sparsity != cell.sparsity:
        raise BenchError(f"pattern {cell.pattern} has sparsity {cell.sparsity:g}, not {sparsity:g}")
    return setup
