"""A stored weight under a mask, with the gradient straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MaskedWeight(nn.Module):
    """Maps a stored weight to m⊙W with the gradient straight through; m is in the state dict.

    m is kept in the weight's dtype: a product with booleans takes six times as long on CPUs.
    """

    def __init__(self, keep: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.keep: Tensor
        self.register_buffer("keep", keep.to(dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Maps the stored weight to its kept entries, others exactly 0."""
        masked: Tensor = _StraightThrough.apply(weight, self.keep)
        return masked


class _StraightThrough(torch.autograd.Function):
    """m⊙W forward, identity backward (arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor) -> Tensor:
        return weight * keep

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
