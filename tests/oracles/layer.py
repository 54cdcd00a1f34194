"""One layer's problem: inputs on which the order of methods is known, and its error."""

import torch


def correlated(seed):
    """(W (64, 128), X (1024, 128)): correlated inputs whose columns differ in size tenfold."""
    g = torch.Generator().manual_seed(seed)
    Z = torch.randn(1024, 32, generator=g)
    F = torch.randn(32, 128, generator=g)
    E = torch.randn(1024, 128, generator=g)
    scale = torch.logspace(-0.5, 0.5, 128)[torch.randperm(128, generator=g)]
    return 0.05 * torch.randn(64, 128, generator=g), (Z @ F / 32**0.5 + 0.3 * E) * scale


def layer_error(X, W, pruned):
    """‖XWᵀ − XŴᵀ‖²_F."""
    return ((X.double() @ (W - pruned).double().t()) ** 2).sum().item()
