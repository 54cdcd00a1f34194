"""PST's masked, updated weight as one differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.shared.masks import keep_largest, pruned_count


class MaskedUpdate(torch.autograd.Function):
    """(W, U, V, A, B, R, C) → M⊙Ŵ with the straight-through gradient through M.

    With G = ∂L/∂(M⊙Ŵ) and D = G⊙Ŵ: ∂Ŵ = G⊙(M + |Ŵ|), or G⊙M when |Ŵ| is detached;
    ∂U = β·∂Ŵ·Vᵀ, ∂V = β·Uᵀ·∂Ŵ, ∂A = α₁·D·Bᵀ, ∂B = α₁·Aᵀ·D, ∂R = α₂·rowsum D,
    ∂C = α₂·colsum D. Written by hand because it is memory traffic that costs here: R and C ride
    along as two more ranks, [α₁A, α₂R, 1]·[B; 1; α₂C], so that one product serves all of S and
    one each all of their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        U: Tensor,
        V: Tensor,
        A: Tensor,
        B: Tensor,
        R: Tensor,
        C: Tensor,
        scales: tuple[float, float, float],
        sparsity: float,
        detach: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """Returns M⊙Ŵ in `dtype`; shapes as in PST's layer, scales are (β, α₁, α₂)."""
        beta, alpha1, alpha2 = scales
        left = torch.cat([alpha1 * A, alpha2 * R, torch.ones_like(R)], dim=2)
        right = torch.cat([B, torch.ones_like(C), alpha2 * C], dim=1)
        updated = torch.baddbmm(weight, U, V, alpha=beta)
        low = updated.to(dtype)
        size = updated.abs()
        k = pruned_count(updated[0].numel(), sparsity)
        if k == 0:
            keep, masked = None, low.clone()
        else:
            scores = torch.baddbmm(size, left, right)
            keeps = [keep_largest(part, k, scores.dtype) for part in scores]
            keep = (keeps[0][None] if len(keeps) == 1 else torch.stack(keeps)).to(dtype)
            masked = low * keep
        # What G is multiplied by in ∂Ŵ; None stands for all ones.
        through = keep if detach else size.to(dtype).add_(1.0 if keep is None else keep)
        ctx.save_for_backward(low, through, U, V, left, right)
        ctx.scales = scales
        return masked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of U, V, A, B, R and C; the other arguments have none."""
        low, through, *factors = ctx.saved_tensors
        # In the type of the forward product: what autocast does to any weight's gradient.
        U, V, left, right = (factor.to(low.dtype) for factor in factors)
        wide = factors[0].dtype
        beta, alpha1, alpha2 = ctx.scales
        D = grad * low
        d_updated = grad if through is None else grad * through
        # (V·Gᵀ)ᵀ, not G·Vᵀ: a few rows times a wide matrix is what BLAS does well.
        dU = torch.bmm(V, d_updated.mT).mT.to(wide) * beta
        dV = torch.bmm(U.mT, d_updated).to(wide) * beta
        d_left = torch.bmm(right, D.mT).mT.to(wide)
        d_right = torch.bmm(left.mT, D).to(wide)
        r = right.shape[1] - 2  # of A and B
        dA, dR = alpha1 * d_left[:, :, :r], alpha2 * d_left[:, :, r : r + 1]
        # left already holds α₁A; its last column is the ones that sum D's columns.
        dB, dC = d_right[:, :r], alpha2 * d_right[:, r + 1 :]
        return None, dU, dV, dA, dB, dR, dC, None, None, None, None
