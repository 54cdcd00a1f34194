"""SparseGPT: layer-wise least squares, column by column (arXiv 2301.00774).

min ‖XWᵀ − XŴᵀ‖²: prune the smallest W²/[H⁻¹]_jj of a block, let later columns make up for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bench.api import BenchError
from methods.shared import obs
from methods.shared.blockwise import OneShot


class SparseGPT(OneShot):
    """Pruning with weight reconstruction from the inputs' second moments."""

    name: ClassVar[str] = "sparsegpt"

    @dataclass(frozen=True)
    class Params:
        """Defaults are the paper's.

        Attributes:
            percdamp: damping of H as a fraction of its mean diagonal.
            blocksize: columns whose mask is chosen at once.
            bits: also rounds the kept weights to this many bits a row; 0 for not at all. Some round
                to 0, so the sparsity comes out higher.
            compat: `reference` prunes one too many in every block, and inputs that were always 0.
        """

        percdamp: float = 0.01
        blocksize: int = 128
        bits: int = 0
        compat: str = "paper"

    statistic = obs.Gram

    def __init__(self, params=None) -> None:
        super().__init__(params)
        p = self.params
        if p.compat not in ("paper", "reference"):
            raise BenchError(f"sparsegpt: compat is 'paper' or 'reference', not {p.compat!r}")
        if p.bits not in (0, *range(2, 9)):
            raise BenchError(f"sparsegpt: bits is 0 or 2 to 8, not {p.bits}")
        if p.blocksize < 1 or p.percdamp < 0:
            raise BenchError("sparsegpt: blocksize must be positive and percdamp not negative")
        self.promises_sparsity = p.compat == "paper" and not p.bits

    def attach(self, model, ctx) -> None:
        """Prunes all targets, block by block."""
        self.sparsity = ctx.cell.sparsity
        super().attach(model, ctx)

    def pruned(self, weight: Tensor, statistic, k: int) -> Tensor:
        """Prunes and reconstructs one matrix."""
        p = self.params
        factor = statistic.factor(p.percdamp)
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
