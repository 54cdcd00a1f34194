"""ADMM: masks and weights of one least-squares problem together (arXiv 2401.02938).

min ‖XWᵀ − XŴᵀ‖² with Ŵ = M⊙Ŵ: one inverse of XᵀX + ρI serves all iterations (methods/README.md).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.layer_problem import scaled, support
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams


class ADMM(OneShot):
    """Pruning by the alternating direction method of multipliers."""

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = "Prunes gradually while ADMM refits the kept weights of each matrix."
    paper: ClassVar[str] = "arXiv 2401.02938, TMLR"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(percdamp=(0.1, 0.01, 1.0), rho=(1.0, 0.3))

    @parameters
    class Params(ReconstructParams):
        """The paper's and its code's."""

        percdamp: float = Field(
            default=0.1, ge=0, description="damping, as a fraction of the mean diagonal of XᵀX"
        )
        rho: float = Field(default=1.0, gt=0, description="penalty ρ, where every input has norm 1")
        iterations: int = Field(default=20, ge=1, description="iterations of ADMM")
        ramp: int = Field(
            default=15,
            ge=1,
            description="iterations in which the mask grows to the sparsity, by a cubic; then it "
            "is fixed",
        )

        @model_validator(mode="after")
        def _ends(self) -> Self:
            if self.ramp > self.iterations:
                raise ValueError(f"ramp {self.ramp}: it is at most iterations, {self.iterations}")
            return self

    params: Params

    statistic = obs.Gram

    def pruned(self, weight: Tensor, statistic: obs.Gram, k: int) -> Tensor:
        """Prunes and refits one matrix."""
        p = self.params
        inverse, norms = statistic.once(self._inverse)
        absent = weight == 0
        start = weight * norms  # W
        free, dual = start, torch.zeros_like(start)  # B, U
        for i in range(p.iterations):
            total = dual.add_(free)  # B + U
            if i < p.ramp:
                done = 1 - (1 - (i + 1) / p.ramp) ** 3
                keep = support(total.abs(), k, self.n_m, absent, done)
            # Z is what the mask keeps of B + U, the new U the rest:
            # B = (H + ρI)⁻¹(HW + ρ(Z − U)) = W + ρ(H + ρI)⁻¹(Z − U − W).
            change = torch.where(keep, total, -total).sub_(start)
            dual = total.masked_fill_(keep, 0.0)
            free = torch.addmm(start, change, inverse, alpha=p.rho)
        return dual.add_(free).div_(norms).masked_fill_(~keep, 0.0)

    def _inverse(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        problem = scaled(gram, self.params.percdamp)
        problem.gram.diagonal().add_(self.params.rho)
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(problem.gram).L), problem.norms
