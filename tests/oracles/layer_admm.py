"""ADMM of arXiv 2401.02938, as its equations stand: explicit inverse, one mask after another."""

import torch


def admm(W, X, keep_of, percdamp=0.1, rho=1.0, iterations=20, ramp=15):
    """The pruned weight.

    Args:
        W: (out, in).
        X: (tokens, in), no input always 0.
        keep_of: (size (out, in), fraction of the sparsity) → bool, true = keep.
    """
    norms = X.norm(dim=0)
    H = (X / norms).t() @ (X / norms)
    H += percdamp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    inverse = torch.linalg.inv(H + rho * torch.eye(len(H), dtype=H.dtype))
    target = H @ (W * norms).t()
    B = (W * norms).t()
    U = torch.zeros_like(B)
    for i in range(iterations):
        if i < ramp:
            keep = keep_of((B + U).t().abs(), 1 - (1 - (i + 1) / ramp) ** 3).t()
        Z = (B + U) * keep
        U = U + B - Z
        B = inverse @ (target + rho * (Z - U))
    return ((B + U) * keep).t() / norms
