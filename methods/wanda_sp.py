"""Wanda-sp: heads and FFN neurons by the norm of Wanda's scores (arXiv 2312.11983).

S_ij = |W_ij|·‖X_j‖₂ of the matrix that reads the units,   S_u = ‖S[:, columns of u]‖
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from bench.api import Context, Field, Setting, grid, parameters
from bench.weights.slicing import Units
from methods.shared.input_statistics import ColumnNorms, wanda_scores
from methods.shared.update_parts import drop
from methods.shared.whole_units import PrunesUnits, by_unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WandaSP(PrunesUnits):
    """Wanda's scores, summed up over whole units."""

    name: ClassVar[str] = "wanda-sp"
    summary: ClassVar[str] = "Removes the heads and neurons with the smallest Wanda scores."
    paper: ClassVar[str] = "arXiv 2312.11983, AAAI"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(norm=("l2", "l1"))

    @parameters
    class Params:
        """How scores of weights become one of a unit."""

        norm: Literal["l2", "l1"] = Field(
            default="l2", description="the norm over the scores of a unit's weights"
        )

    params: Params

    def prune(self, model: PreTrainedModel, ctx: Context, groups: list[Units]) -> None:
        """Removes equal shares of the heads, and of the neurons, of every block."""

        def visit(group: Units, statistic: ColumnNorms) -> None:
            scores = unit_norms(group, statistic.norms, 2 if self.params.norm == "l2" else 1)
            drop(group, scores, ctx.cell.sparsity, [])

        self.read(model, ctx, groups, ColumnNorms, visit, prunes=True)


def unit_norms(group: Units, norms: Tensor, p: int) -> Tensor:
    """Returns the p-norm of the Wanda scores of each unit's columns, (units,)."""
    scores = wanda_scores(group.columns.weight.float(), norms)
    found: Tensor = torch.linalg.vector_norm(by_unit(group, scores), p, dim=(0, 2))
    return found
