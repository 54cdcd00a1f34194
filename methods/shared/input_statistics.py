"""What one-shot methods collect of a matrix's inputs; XᵀX is in `obs`, beside its solvers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Statistic(Protocol):
    """What is collected of a matrix's inputs."""

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""

    @property
    def finite(self) -> bool:
        """Whether all that was accumulated is finite."""


class ColumnNorms:
    """‖X_j‖₂ of every input column j over all calibration tokens; float32, (in,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.squares = torch.zeros(width, device=device)

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        self.squares += x.float().square().sum(0)

    @property
    def finite(self) -> bool:
        """Whether all inputs were finite."""
        return bool(self.squares.isfinite().all())

    @property
    def norms(self) -> Tensor:
        """The norms, (in,)."""
        return self.squares.sqrt()


class Moments:
    """Mean, variance and 2-norm of every input column over all calibration tokens; float32, (in,).

    Batches are joined by their means: a large mean hides no variance (Chan, Golub and
    LeVeque 1979).
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, device=device)
        self.deviations = torch.zeros(width, device=device)  # Σ(x − mean)²

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        x, before = x.float(), self.count
        mean, self.count = x.mean(0), before + len(x)
        away = mean - self.mean
        self.deviations += (x - mean).square().sum(0)
        self.deviations += away.square() * (before * len(x) / self.count)
        self.mean += away * (len(x) / self.count)

    @property
    def finite(self) -> bool:
        """Whether all inputs were finite."""
        return bool(self.deviations.isfinite().all())

    @property
    def variance(self) -> Tensor:
        """The variances, (in,)."""
        return self.deviations / self.count

    @property
    def norms(self) -> Tensor:
        """The 2-norms, (in,)."""
        return (self.deviations + self.count * self.mean.square()).sqrt()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Returns |W_ij|·‖X_j‖₂ (arXiv 2306.11695), (out, in)."""
    return weight.abs() * norms
