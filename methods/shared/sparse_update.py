"""A sparse update of a stored weight, its places by gradient (arXiv 2401.04679)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.weights.targets import Target, normal_form
from methods.shared.masks import keep_largest


class SparseUpdate(nn.Module):
    """Adds S to a stored weight: `values` (|Ω|,) at `omega` (2, |Ω|), places in that layout.

    Until Ω is chosen nothing is added, and the weight's gradient can be collected on its way back:
    micro-batches of one update are summed before the sum is squared.
    """

    wide_inputs = ("values",)  # each output has a fixed share of its inputs

    def __init__(self, target: Target, rows: list[slice], params: Any) -> None:
        super().__init__()
        self.transposed, self.rows = target.transposed, rows
        self.squared = params.collect == "mean_squared"
        # The low-rank update's output is nobody else's, the frozen weight is.
        self.in_place = params.rank > 0
        self.shape, width = target.stored.shape, target.shape[1]
        self.counts = [int(params.density * (r.stop - r.start) * width + 1e-6) for r in rows]
        self.values = nn.Parameter(torch.zeros(sum(self.counts)))
        # Buffers, as a checkpoint needs them.
        self.omega: Tensor | None
        self.batch: Tensor | None
        self.total: Tensor | None
        self.register_buffer("omega", None)
        self.register_buffer("batch", None)
        self.register_buffer("total", None)
        self.collecting = False

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to the weight with S, in the same layout."""
        updated: Tensor = _Add.apply(stored, self.values, self)
        return updated

    def collect(self, grad: Tensor) -> None:
        """Adds a micro-batch's gradient of the stored weight to the batch's."""
        self.batch = grad.clone() if self.batch is None else self.batch.add_(grad)

    def end_batch(self) -> None:
        """Adds the batch's gradient, squared or not, to the sum over batches."""
        if self.batch is not None:
            seen = self.batch.square_() if self.squared else self.batch
            self.total = seen if self.total is None else self.total.add_(seen)
            self.batch = None

    def choose(self) -> None:
        """Chooses Ω: in each logical matrix the places of the largest sums over batches."""
        total = self.values.new_zeros(self.shape) if self.total is None else self.total
        scores = normal_form(total, self.transposed).abs()
        found = []
        for part, count in zip(self.rows, self.counts, strict=True):
            keep = keep_largest(scores[part], scores[part].numel() - count)
            places = keep.nonzero_static(size=count).t()
            found.append(places + torch.tensor([[part.start], [0]], device=keep.device))
        omega = torch.cat(found, dim=1)
        self.omega = omega.flip(0) if self.transposed else omega
        self.collecting, self.total = False, None


class _Add(torch.autograd.Function):
    """(W, θ) → W with θ added at Ω; ∂W = G, ∂θ = G at Ω."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, values: Tensor, layer: SparseUpdate) -> Tensor:
        ctx.layer, ctx.omega = layer, layer.omega
        if layer.omega is None:
            return stored.view_as(stored)
        if layer.in_place:
            ctx.mark_dirty(stored)
        out = stored if layer.in_place else stored.clone()
        out[layer.omega[0], layer.omega[1]] += values
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if ctx.omega is not None:
            return grad, grad[ctx.omega[0], ctx.omega[1]], None
        if ctx.layer.collecting:
            ctx.layer.collect(grad)
        return grad, None, None
