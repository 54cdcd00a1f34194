"""Masks made by trained scores, one for a weight, a block or a neuron (arXiv 2005.07683)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import BenchError
from bench.weights.targets import Target
from methods.shared.masks import keep_largest, pruned_count


def units_of(target: Target, block: tuple[int, int]) -> tuple[int, int]:
    """Returns how many blocks there are along out and in.

    Raises:
        BenchError: they do not tile the matrix.
    """
    (rows, columns), (r, c) = target.shape, block
    if not r or not c or rows % r or columns % c:
        raise BenchError(f"blocks of {r}×{c} do not tile {target.name}, which is {rows}×{columns}")
    return rows // r, columns // c


class Gate(nn.Module):
    """A pool of scores and the keep mask that they make, which stands for one update.

    Args:
        units: how many scores.
        soft: whether a threshold decides, or a share.
        floor: how many of the best survive any threshold.
        extent: how many weights a unit stands for.
    """

    def __init__(self, units: int, soft: bool, floor: int, extent: int = 1) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(units))
        self.soft, self.floor, self.extent = soft, floor, extent
        self.set(0.0)

    def set(self, level: float, keep: Tensor | None = None) -> None:
        """Sets the sparsity (hard) or τ (soft) that the next forward uses, or the mask itself."""
        self.level = level
        self._keep = keep

    def keep(self) -> Tensor:
        """Returns the mask, (units,), as floats: on CPUs products with bools are slower."""
        if self._keep is None:
            scores = self.scores.detach()
            n = scores.numel()
            if self.soft:
                cut = math.log(self.level / (1.0 - self.level)) if self.level else -math.inf
                keep = torch.gt(scores, cut, out=torch.empty_like(scores))
                # The best few either survive anyway, or they are all that does. On GPUs they are
                # always looked for: counting first would stall the stream.
                if self.floor and (scores.device.type != "cpu" or keep.sum() < self.floor):
                    keep = torch.maximum(keep, keep_largest(scores, n - self.floor, scores.dtype))
            else:
                keep = keep_largest(scores, pruned_count(n, self.level), scores.dtype)
            self._keep = keep
        return self._keep


@torch.no_grad()
def keep_together(gates: list[Gate], share: float) -> list[Tensor]:
    """Returns the masks of gates whose units compete with each other, as floats.

    The lowest scores go, for as long as no more than the share of all weights is gone. The best of
    each gate, its floor, go last.
    """
    scores = torch.cat([gate.scores for gate in gates])
    if scores.is_meta:
        return [torch.empty_like(gate.scores) for gate in gates]
    for gate, part in zip(gates, scores.split([g.scores.numel() for g in gates]), strict=True):
        if gate.floor:
            n = gate.scores.numel()
            part.masked_fill_(keep_largest(gate.scores, n - gate.floor), math.inf)
    extents = {gate.extent for gate in gates}
    wanted = pruned_count(sum(gate.scores.numel() * gate.extent for gate in gates), share)
    if len(extents) == 1:
        k = wanted // extents.pop()
    else:
        sizes = torch.cat([torch.full_like(g.scores, g.extent, dtype=torch.long) for g in gates])
        gone = sizes[scores.argsort(stable=True)].cumsum(0)
        k = int((gone <= wanted).sum())
    keep = keep_largest(scores, k, scores.dtype)
    return list(keep.split([gate.scores.numel() for gate in gates]))


class Masked(nn.Module):
    """Maps a stored weight to M⊙W; `unit` is the (out, in) extent that one score stands for.

    The scores of a matrix lie as its units do in the stored tensor, row by row.
    """

    def __init__(self, gate: Gate, unit: tuple[int, int], transposed: bool) -> None:
        super().__init__()
        self.gate, self.transposed = gate, transposed
        self.unit = unit[::-1] if transposed else unit

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to its masked value in the same layout."""
        masked: Tensor = _Mask.apply(stored, self.gate.scores, self.gate.keep(), self.unit)
        return masked

    def outputs(self, length: int) -> Tensor:
        """Returns 1 for an output of which any weight is kept: (out,)."""
        out = 1 if self.transposed else 0
        keep, unit = self.gate.keep(), self.unit[out]
        grid = (-1, length // unit) if self.transposed else (length // unit, -1)
        return keep.view(grid).amax(dim=1 - out).repeat_interleave(unit)


class BiasMask(nn.Module):
    """Maps a bias to its masked value."""

    def __init__(self, layer: Masked) -> None:
        super().__init__()
        self.outputs = layer.outputs  # a method: the layer is registered at its weight already

    def forward(self, bias: Tensor) -> Tensor:
        """Returns the bias, zero where the whole row of the weight is pruned."""
        return bias * self.outputs(bias.numel())


class _Mask(torch.autograd.Function):
    """(W, S) → M⊙W with ∂W = G⊙M and ∂S = the sum of G⊙W over each unit.

    All in one 4-d view, (units, extent, units, extent), over which the mask broadcasts.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, keep: Tensor, unit: tuple[int, int]
    ) -> Tensor:
        a, b = unit
        grid = (weight.shape[0] // a, a, weight.shape[1] // b, b)
        keep = keep.view(grid[0], 1, grid[2], 1)
        ctx.save_for_backward(weight, keep)
        ctx.grid, ctx.score_shape = grid, scores.shape
        return (weight.view(grid) * keep).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, keep = ctx.saved_tensors
        d_scores = (grad * weight).view(ctx.grid)
        if d_scores.shape != keep.shape:
            d_scores = d_scores.sum(dim=(1, 3))
        d_weight = (grad.reshape(ctx.grid) * keep).view(weight.shape)
        return d_weight, d_scores.reshape(ctx.score_shape), None, None
