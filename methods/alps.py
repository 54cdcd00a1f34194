"""ALPS: ADMM with a rising penalty finds the support, conjugate gradients the weights on it.

arXiv 2406.07831; methods/README.md, alps. Inputs are scaled to norm 1:

    min ½‖XWᵀ − XBᵀ‖²  with B = D, D of k weights
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.api import Field, Setting, grid, parameters
from methods.shared import obs
from methods.shared.layer_problem import refitted, scaled, support
from methods.shared.one_shot import OneShot
from methods.shared.reconstruct import ReconstructParams

EVERY = 3  # iterations between two looks at the support
STEPS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # above this share of k changed → factor of ρ
SETTLED, AFTER = 3e-4, 30  # share of k that still changes when ADMM may end, from this iteration on


class ALPS(OneShot):
    """Pruning by operator splitting, refined on the support."""

    name: ClassVar[str] = "alps"
    summary: ClassVar[str] = "Finds the support by ADMM with a rising penalty, then refits on it."
    paper: ClassVar[str] = "arXiv 2406.07831, NeurIPS"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(percdamp=(0.01, 0.001, 0.1), rho=(0.1, 0.3))

    @parameters
    class Params(ReconstructParams):
        """The paper's and its code's."""

        percdamp: float = Field(
            default=0.01, ge=0, description="damping, as a fraction of the mean diagonal of XᵀX"
        )
        rho: float = Field(
            default=0.1, gt=0, description="first penalty ρ, where every input has norm 1"
        )
        iterations: int = Field(default=300, ge=1, description="iterations of ADMM, at most")
        refits: int = Field(
            default=10, ge=0, description="conjugate-gradient iterations on the support"
        )

    params: Params

    statistic = obs.Gram

    def pruned(self, weight: Tensor, statistic: obs.Gram, k: int) -> Tensor:
        """Prunes and refits one matrix."""
        gram, norms, values, vectors = statistic.once(self._decomposed)
        absent, start, rho = weight == 0, weight * norms, self.params.rho
        keep = seen = support(start.abs(), k, self.n_m, absent)
        kept = max(int(keep.sum()), 1)
        sparse, dual = start * keep, torch.zeros_like(start)  # D, V/ρ
        for i in range(1, self.params.iterations + 1):
            # (H + ρI)⁻¹(HW − V + ρD) = W + ρ(H + ρI)⁻¹(D − V/ρ − W)
            change = (sparse - dual).sub_(start) @ vectors
            free = torch.addmm(start, change.mul_(rho / (values + rho)), vectors.t())
            total = dual.add_(free)
            keep = support(total.abs(), k, self.n_m, absent)
            sparse = total * keep
            dual = total.masked_fill_(keep, 0.0)
            if i % EVERY == 0:
                changed = int((keep != seen).sum()) / kept
                if changed == 0 or (i >= AFTER and changed < SETTLED):
                    break
                factor = next(factor for share, factor in STEPS if changed > share)
                rho, seen = rho * factor, keep
                dual.div_(factor)  # V stays
        sparse = refitted(sparse, start, gram, keep, self.params.refits)
        return sparse.div_(norms).masked_fill_(~keep, 0.0)

    def _decomposed(self, gram: Tensor) -> tuple[Tensor, ...]:
        problem = scaled(gram, self.params.percdamp)
        return *problem, *torch.linalg.eigh(problem.gram)
