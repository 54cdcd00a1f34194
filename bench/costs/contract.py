"""Checks a method's promises: pattern and sparsity."""

from __future__ import annotations

from transformers import PreTrainedModel

from bench.api import Method
from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.pattern import UNSTRUCTURED
from bench.core.record_parts import Sparsity
from bench.weights import targets
from bench.weights.zeros_before import ZerosBefore


def check_contract(
    cell: Cell,
    method: Method,
    sparsity: Sparsity,
    model: PreTrainedModel,
    before: ZerosBefore | None = None,
) -> None:
    """Checks that a finished model has the cell's pattern and the promised sparsity.

    A method must not make more zeros than it promises. Zeros that it was given and kept are none
    of its making.

    Args:
        cell: the cell.
        method: its method.
        sparsity: fractions of zeros counted in the model.
        model: the finished model.
        before: the zeros that the method was given; by default none.

    Raises:
        BenchError: kind `contract`: the model breaks a promise of the method.
    """
    if not sparsity.pattern_ok:
        raise BenchError(f"{cell.method}: pattern {cell.pattern} does not hold", "contract")
    # Each matrix rounds its count of zeros down, so at most one zero a matrix is missing.
    matrices = targets.prunable(model)
    elements = sum(t.shape[0] * t.shape[1] for t in matrices)
    slack = len(matrices) / elements + 1e-6
    # What is promised is promised of the prunable set; `overall` counts routers, too.
    counted = sparsity.overall * targets.block_elements(model) / elements
    if cell.pattern == UNSTRUCTURED and method.promises_sparsity:
        slack += 1e-4  # weights that are zero by chance
    else:
        slack += 1e-2  # heads, neurons and blocks are removed whole, in steps
    promised = cell.sparsity - sum(method.left_dense.values()) / elements
    given = before.kept(matrices) / elements if before else 0.0
    # Quantizing rounds small weights to zero, so more zeros than promised are fine then.
    most = 1.0 if cell.quantization else promised + given + slack
    if method.promises_sparsity and not promised - slack <= counted <= most:
        raise BenchError(
            f"{cell.method}: counted sparsity {counted:.6f}, promised {promised:g}",
            "contract",
        )
