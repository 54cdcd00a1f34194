"""One layer's least-squares problem, min ‖XWᵀ − XŴᵀ‖²: its scaling, supports and base masks."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from methods.shared import obs
from methods.shared.masks import keep_largest, keep_n_m, keep_spread

NMPattern = tuple[int, int] | None

_SMALLEST = 1e-8  # of the largest norm: what a dead input is scaled by


class Scaled(NamedTuple):
    """A problem whose inputs have norm 1: matrices are solved for W·norms.

    Attributes:
        gram: XᵀX between normalised inputs, damped, (in, in); 0 instead of 1 for a dead input.
        norms: ‖X_j‖₂, (in,), above 0.
    """

    gram: Tensor
    norms: Tensor


def scaled(gram: Tensor, percdamp: float) -> Scaled:
    """Normalises the inputs, then adds a fraction of the mean diagonal."""
    norms = gram.diagonal().sqrt()
    # Dead inputs: their weights become tiny, go first, and come back unharmed if they stay.
    norms = norms.maximum(_SMALLEST * norms.max()).clamp(min=torch.finfo(norms.dtype).tiny ** 0.25)
    unit = gram / norms / norms[:, None]
    unit.diagonal().add_(percdamp * unit.diagonal().mean())
    return Scaled(unit, norms)


def support(size: Tensor, k: int, n_m: NMPattern, absent: Tensor, done: float = 1.0) -> Tensor:
    """Returns the keep mask of the largest, or of the N largest of each group.

    Args:
        size: (out, in), not negative; the whole matrix is one pool.
        k: how many to prune, for unstructured masks.
        n_m: N and M instead.
        absent: (out, in), bool: weights that were 0 already go first and all of them go.
        done: fraction of the pruned weights that go; the smallest of what would go.
    """
    size = size.masked_fill(absent, -1.0)
    if n_m:
        # What its group keeps stays, however small.
        size = size.masked_fill(keep_n_m(size, *n_m), torch.inf)
        k = size.numel() // n_m[1] * (n_m[1] - n_m[0])
    return keep_largest(size, round(done * k)) & ~absent


def keep_rows(scores: Tensor, k: int, n_m: NMPattern) -> Tensor:
    """Returns the keep mask of a method that compares weights within rows, or within groups."""
    return keep_n_m(scores, *n_m) if n_m else keep_spread(scores, k)


Base = Literal["wanda", "magnitude", "sparsegpt"]


def base_factors(
    base: Base, norms: Tensor, gram: Tensor | None = None, sequences: int = 2
) -> Tensor:
    """Returns c (in,) of the scores |W_ij|·c_j by which a base method prunes original weights.

    SparseGPT's W²/R_jj² is (|W|·U_jj)², with H = U·Uᵀ damped as there.

    Args:
        base: the method.
        norms: ‖X_j‖₂, (in,).
        gram: XᵀX, for `sparsegpt`.
        sequences: B of `factorise`.
    """
    if base == "magnitude":
        return torch.ones_like(norms)
    if base == "wanda":
        return norms
    assert gram is not None
    upper, dead = obs.factorise(gram, 0.01, sequences)
    return upper.diagonal().masked_fill(dead, 0.0)


def refitted(weight: Tensor, target: Tensor, gram: Tensor, keep: Tensor, steps: int) -> Tensor:
    """Returns weights nearer to the least-squares answer on a support, by conjugate gradients.

    Every row is a problem of its own, with one product (out, in)·(in, in) a step for all. `scaled`
    has made the diagonal 1, which is Jacobi's preconditioner.

    Args:
        weight: (out, in), where to start; 0 outside the support.
        target: (out, in), the dense weight.
        gram: (in, in), damped.
        keep: (out, in), the support.
        steps: products.
    """
    tiny = torch.finfo(weight.dtype).tiny
    residual = ((target - weight) @ gram) * keep
    direction, square = residual, residual.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        moved = (direction @ gram) * keep
        step = square / (direction * moved).sum(dim=1, keepdim=True).clamp(min=tiny)
        weight = torch.addcmul(weight, step, direction)
        residual = torch.addcmul(residual, step, moved, value=-1)
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = torch.addcmul(residual, square / before.clamp(min=tiny), direction)
    return weight
