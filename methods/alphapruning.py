"""AlphaPruning: heavy-tailed spectra decide how sparse a block becomes (arXiv 2410.10912).

α = 1 + k / Σ_{i=1..k} ln(λ_{n−i+1}/λ_{n−k}),   λ: the n eigenvalues of WᵀW, ascending
s_l = η·m_l,   m_l = 1 − τ + 2τ·(α_l − min α)/(max α − min α),   α_l: mean of block l's matrices
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from bench.api import Context, Field, Setting, grid, parameters
from bench.weights.blocks import blocks
from bench.weights.targets import targets_of
from methods.shared.block_allocation import Allocated, BaseParams, Blocks, stretched

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BINS = 100  # of the histogram whose peak starts the tail

Tail = Literal["peak", "half"]


class AlphaPruning(Allocated):
    """Blocks with heavier tails stay denser."""

    name: ClassVar[str] = "alphapruning"
    summary: ClassVar[str] = (
        "Gives blocks with heavier-tailed spectra a lower sparsity, then prunes by another method."
    )
    paper: ClassVar[str] = "arXiv 2410.10912, NeurIPS"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(tau=(0.3, 0.1, 0.2, 0.4), tail=("peak", "half"))

    @parameters
    class Params(BaseParams):
        """The paper's and its code's."""

        tau: float = Field(
            default=0.3,
            ge=0,
            lt=1,
            description="before scaling, the sparsities lie between 1 − τ and 1 + τ times one",
        )
        tail: Tail = Field(
            default="peak",
            description="where the tail starts: at the peak of the eigenvalues' histogram or at "
            "their median",
        )

    params: Params

    def density(self, model: PreTrainedModel, ctx: Context) -> Blocks:
        """Returns −s_l of every block, from the weights alone."""
        parts = [inside for inside in targets_of(blocks(model), ctx.targets) if inside]
        tau, tail = self.params.tau, self.params.tail
        exponents = block_means([[exponent(t.weight, tail) for t in inside] for inside in parts])
        factors = [1 - tau + more for more in stretched(exponents, 2 * tau)]
        sizes = [sum(t.stored.numel() for t in inside) for inside in parts]
        mean = sum(m * n for m, n in zip(factors, sizes, strict=True)) / sum(sizes)
        return parts, [-ctx.cell.sparsity * m / mean for m in factors]


def exponent(weight: Tensor, tail: Tail) -> float | None:
    """Returns Hill's estimate of the exponent of a matrix's spectrum.

    A histogram of fewer eigenvalues than bins has no peak: their tail starts at the median. None
    where nothing is above the start.
    """
    values = torch.linalg.svdvals(weight.float())
    # Below rounding an eigenvalue is 0, and its logarithm noise.
    rounding = max(weight.shape) * torch.finfo(values.dtype).eps
    logs = 2 * values[values > rounding * values.max()].double().log().cpu().flip(0)
    n = len(logs)
    start = n - n // 2 - 1
    if tail == "peak" and n >= BINS:
        low, high = float(logs[0]), float(logs[-1])
        fullest = int(torch.histc(logs, BINS, min=low, max=high).argmax())
        start = int((logs < low + (high - low) * fullest / BINS).sum())
    total = float((logs[start + 1 :] - logs[start]).sum()) if n else 0.0
    return 1 + (n - start - 1) / total if total > 0 else None


def block_means(exponents: list[list[float | None]]) -> list[float]:
    """Returns the mean of each block; a block without any exponent gets the mean of the others."""
    known = [[e for e in block if e is not None] for block in exponents]
    means = [fmean(block) for block in known if block]
    common = fmean(means) if means else 0.0
    return [fmean(block) if block else common for block in known]
