"""A low-rank plus sparse update of some rows of a stored weight (arXiv 2111.00160)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.weights.precision import without_autocast
from bench.weights.targets import Target


class Update(nn.Module):
    """Adds (α/r)(BA + S2) to one logical matrix of a stored weight.

    Shapes: A (r, in), B (rows, r), theta (N,) at rows `omega[0]` and columns `omega[1]`.
    """

    wide_inputs = ("A",)  # B reads r numbers, and N places are few at any width

    def __init__(
        self,
        target: Target,
        rows: slice,
        omega: Tensor,
        params: Any,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        r, o, i = params.rank, rows.stop - rows.start, target.shape[1]
        self.A = nn.Parameter(0.02 * torch.randn(r, i, generator=rng))
        self.B = nn.Parameter(torch.zeros(o, r))
        self.theta = nn.Parameter(torch.zeros(omega.shape[1]))
        self.omega: Tensor
        self.register_buffer("omega", omega)
        scale: float = params.alpha / r
        self.place = (rows, scale, target.transposed)

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to the updated one in the same layout, in float32."""
        with without_autocast(stored):
            updated: Tensor = AddUpdate.apply(
                stored, self.A, self.B, self.theta, self.omega, self.place
            )
        return updated

    @property
    def scale(self) -> float:
        """α/r."""
        return self.place[1]

    @torch.no_grad()
    def delta(self, low_rank: bool = True, sparse: bool = True) -> Tensor:
        """Returns (α/r)(BA + S2), or one of the two terms: (rows, in)."""
        dense = self.B @ self.A if low_rank else self.A.new_zeros(len(self.B), self.A.shape[1])
        if sparse:
            dense[self.omega[0], self.omega[1]] += self.theta
        return self.scale * dense

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Zeroes some rows of the update.

        They stay zero without a mask: nothing reads the removed outputs, so their gradient is 0.
        """
        self.B.index_fill_(0, rows, 0.0)
        self.theta.masked_fill_(torch.isin(self.omega[0], rows), 0.0)

    def stored(self) -> int:
        """Returns how many numbers the update needs: A, and what is not zero of B and Θ."""
        return self.A.numel() + int(self.B.count_nonzero() + self.theta.count_nonzero())


class AddUpdate(torch.autograd.Function):
    """(W, A, B, Θ) → W + s(BA + S2) on some rows, in one copy of W.

    With G = ∂L/∂W on those rows: ∂A = s·BᵀG, ∂B = s·GAᵀ, ∂Θ = s·G at Ω.
    """

    @staticmethod
    def forward(
        ctx: Any,
        stored: Tensor,
        A: Tensor,
        B: Tensor,
        theta: Tensor,
        omega: Tensor,
        place: tuple[slice, float, bool],
    ) -> Tensor:
        """Adds the update to a copy of `stored`."""
        rows, scale, transposed = place
        out = stored.clone()
        part = (out.t() if transposed else out)[rows]
        part.addmm_(B, A, alpha=scale)
        part[omega[0], omega[1]] += scale * theta
        ctx.save_for_backward(A, B, omega)
        ctx.place = place
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of W, A, B and Θ."""
        A, B, omega = ctx.saved_tensors
        rows, scale, transposed = ctx.place
        G = (grad.t() if transposed else grad)[rows]
        d_theta = scale * G[omega[0], omega[1]]
        return grad, scale * (B.t() @ G), scale * (G @ A.t()), d_theta, None, None
