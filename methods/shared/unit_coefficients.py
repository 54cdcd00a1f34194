"""A trained number for each head or neuron (arXiv 2111.00160)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.weights import slicing


class Coefficients(nn.Module):
    """Multiplies what each head or neuron puts out by a trained number, first 1."""

    def __init__(self, units: slicing.Units) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(units.count))
        self.share = units.columns.shape[1] // units.count
        self.transposed = units.columns.transposed
        self.register_buffer("folded", None)  # a flag that a checkpoint holds

    def forward(self, stored: Tensor) -> Tensor:
        """Scales the (normal-form) columns of the stored weight, unless they are for good."""
        if self.folded is not None:
            return stored
        c = self.c.repeat_interleave(self.share)
        return stored * (c[:, None] if self.transposed else c)

    def fold(self, weight: Tensor) -> None:
        """Scales the columns of `weight`: (out, in) for good."""
        weight.mul_(self.c.repeat_interleave(self.share))
        self.folded = torch.ones((), dtype=torch.bool)
