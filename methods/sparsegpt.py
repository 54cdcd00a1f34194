"""SparseGPT: layer-wise least squares, column by column (arXiv 2301.00774).

min ‖XWᵀ − XŴᵀ‖²: prune the smallest W²/[H⁻¹]_jj of a block, let later columns make up for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

if TYPE_CHECKING:
    from torch import Tensor


class SparseGPT(OneShot):
    """Pruning with weight reconstruction from the inputs' second moments."""

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = "Prunes column by column; the remaining columns make up for the error."
    paper: ClassVar[str] = "arXiv 2301.00774, ICML"
    year: ClassVar[int] = 2023
    version: ClassVar[int] = 2
    search: ClassVar[tuple[Setting, ...]] = grid(
        percdamp=(0.01, 0.001, 0.1, 1.0), blocksize=(128, 32)
    )

    @parameters
    class Params(ReconstructParams):
        """The paper's."""

        percdamp: float = Field(
            default=0.01, ge=0, description="damping, as a fraction of the mean diagonal of H"
        )
        blocksize: int = Field(
            default=128, ge=1, description="columns whose mask is chosen at once"
        )
        bits: Literal[0, 2, 3, 4, 5, 6, 7, 8] = Field(
            default=0,
            description="bits that kept weights are rounded to in each row; 0: no rounding",
        )
        compat: Literal["paper", "reference"] = Field(
            default="paper",
            description="reference prunes one more in each block, and inputs that were always 0",
        )

        @model_validator(mode="after")
        def _stays_rounded(self) -> Self:
            if self.bits and self.reconstruct:
                raise ValueError("reconstruct undoes bits; leave one of them at 0")
            return self

    params: Params

    statistic = obs.Gram

    @property
    def promises_sparsity(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the counted sparsity is the cell's: rounded weights may become 0, too."""
        return self.params.compat == "paper" and not self.params.bits

    def pruned(self, weight: Tensor, statistic: obs.Gram, k: int) -> Tensor:
        """Prunes and reconstructs one matrix."""
        p = self.params
        factor = statistic.factor(p.percdamp, self.sequences)
        if p.compat == "reference":
            weight = weight.masked_fill(factor[1], 0.0)
        if self.n_m:
            select, group = obs.n_of_m(self.n_m[0]), self.n_m[1]
        elif p.compat == "reference":
            select, group = obs.threshold(self.sparsity), p.blocksize
        else:
            select, group = obs.exactly(k, weight.shape[1]), p.blocksize
        quantize = obs.rounding(weight, p.bits) if p.bits else None
        return obs.sweep(weight, factor, select, group, p.blocksize, quantize)
