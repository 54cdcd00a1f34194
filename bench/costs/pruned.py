"""What was pruned in a model in memory: zeros of every matrix, counted in the finished weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from bench.api import Method
from bench.core import seeds
from bench.core.cell import Cell
from bench.core.record_parts import Sparsity, Trainable
from bench.costs.contract import check_contract
from bench.costs.parameters import count_sparsity
from bench.weights.targets import prunable
from bench.weights.unstacked import unstacked
from bench.weights.zeros_before import ZerosBefore


@dataclass(frozen=True)
class MatrixZeros:
    """The zeros of one matrix.

    Attributes:
        name: name of its module; an expert's ends with its number in the stack.
        shape: (out, in).
        zeros: number of zeros.
        before: number of zeros that it had before.
    """

    name: str
    shape: tuple[int, int]
    zeros: int
    before: int

    @property
    def sparsity(self) -> float:
        """Zeros as a fraction of the matrix."""
        return self.zeros / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Pruned:
    """What a method has done to a model.

    Attributes:
        cell: method, pattern and sparsity that were asked for; task and model are only labels.
        counted: fractions of zeros, counted in the finished model.
        matrices: the zeros of every prunable matrix.
        seconds: wall-clock time, calibration and training included.
        seeds: what decided all random draws, by use.
        left_dense: names of the matrices that the method could not prune.
        trainable: number of elements that the optimizer held; zero where nothing trained.
        notes: numbers that the finished model cannot tell, as the method reports them.
    """

    cell: Cell
    counted: Sparsity
    matrices: tuple[MatrixZeros, ...]
    seconds: float
    seeds: Mapping[str, int]
    left_dense: tuple[str, ...] = ()
    trainable: Trainable = field(default_factory=lambda: Trainable(body=0, head=0))
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Zeros of all matrices of the blocks, as a fraction; routers count as dense."""
        return self.counted.overall

    @property
    def zeros(self) -> int:
        """Number of zeros in the prunable matrices."""
        return sum(matrix.zeros for matrix in self.matrices)

    def __str__(self) -> str:
        return f"{self.cell.method} {self.cell.pattern}: {sparsity_line(self.counted)}"


def sparsity_line(counted: Sparsity) -> str:
    """Tells counted fractions of zeros in one line."""
    before = "" if counted.before is None else f" ({counted.before:.4f} before)"
    return (
        f"sparsity {counted.overall:.4f} of all matrices in the blocks{before}, "
        f"{counted.min_layer:.4f} to {counted.max_layer:.4f} a matrix"
    )


def count_pruned(
    model: PreTrainedModel,
    method: Method,
    cell: Cell,
    before: ZerosBefore,
    seconds: float,
    trainable: Trainable | None = None,
) -> Pruned:
    """Counts the zeros of a finished model of any form, and checks what the method has promised.

    Args:
        model: with plain parameters.
        method: the method, finished.
        cell: what was asked for.
        before: the zeros that the method was given.
        seconds: how long it took.
        trainable: number of elements that the optimizer held.

    Raises:
        BenchError: kind `contract`: a module is still parametrized, or a promise is broken.
    """
    with unstacked(model):
        counted = count_sparsity(model, cell.pattern, before, method.left_dense)
        matrices = tuple(
            MatrixZeros(t.name, t.shape, int((t.stored == 0).sum()), before.of(t.name))
            for t in prunable(model)
        )
        check_contract(cell, method, counted, model, before)
    return Pruned(
        cell=cell,
        counted=counted,
        matrices=matrices,
        seconds=seconds,
        seeds=seeds_of(cell),
        left_dense=tuple(sorted(method.left_dense)),
        trainable=trainable or Trainable(body=0, head=0),
        notes=dict(method.report),
    )


def seeds_of(cell: Cell) -> dict[str, int]:
    """Returns the seeds that a cell without a task derives from its own."""
    return {
        "cell": cell.seed,
        "method": seeds.derive("method", cell.seed),
        "rng": seeds.derive("rng", cell.method, cell.seed),
        "calibration": seeds.derive("calibration", cell.seed),
    }
