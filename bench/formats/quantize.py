"""Weight-only quantization: a group of inputs shares a scale, and zeros stay exactly zero.

    weight ≈ (code − zero) · scale,    code in 0 … levels − 1

A group is `group` neighbouring inputs of one output, so groups run along dim 1 of (out, in); the
last one of a row may be shorter. Symmetric codes have their zero in the middle; asymmetric ones
store it. The range of a group always holds 0, so pruned weights change no scale and are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.overrides import Quantization, Quantizer
from bench.weights.targets import embedding_tables, prunable

_CHUNK = 1 << 22  # weights worked on at a time: the steps between take many bytes a weight


@dataclass(frozen=True)
class Quantized:
    """A quantized weight.

    Attributes:
        codes: (out, in), uint8.
        scales: (out, groups), float16, not negative.
        zeros: (out, groups), uint8; None for symmetric codes.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def quantize(weight: Tensor, quantizer: Quantizer) -> Quantized:
    """Rounds `weight`: (out, in) to the nearest code; no weight moves by more than scale / 2.

    Raises:
        BenchError: a weight that is not finite, or too large for a float16 scale.
    """
    parts = [_quantize(rows, quantizer) for rows in weight.split(_rows(weight))]
    return Quantized(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts if part.zeros is not None])
        if quantizer.asymmetric
        else None,
    )


def _quantize(weight: Tensor, quantizer: Quantizer) -> Quantized:
    rows, columns = weight.shape
    groups = quantizer.groups(columns)
    padded = F.pad(weight.float(), (0, groups * quantizer.group - columns))
    padded = padded.view(rows, groups, quantizer.group)
    highest, middle = quantizer.levels - 1, quantizer.levels // 2
    if quantizer.asymmetric:
        low = padded.amin(dim=2, keepdim=True).clamp(max=0)
        high = padded.amax(dim=2, keepdim=True).clamp(min=0)
        scales = _half_up((high - low) / highest)
        zeros = (-low / _step(scales)).round().clamp(0, highest)
    else:
        # One code stays unused so that w and −w have the same error.
        scales = _half_up(padded.abs().amax(dim=2, keepdim=True) / (middle - 1))
        zeros = torch.full_like(scales, middle, dtype=torch.float32)
    if not bool(scales.isfinite().all()):
        raise BenchError(f"{quantizer.name} wants finite weights that a float16 scale can reach")
    codes = (padded / _step(scales)).round_().add_(zeros).clamp_(0, highest).to(torch.uint8)
    return Quantized(
        codes=codes.view(rows, -1)[:, :columns].contiguous(),
        scales=scales.squeeze(2),
        zeros=zeros.squeeze(2).to(torch.uint8) if quantizer.asymmetric else None,
    )


def dequantize(quantized: Quantized, quantizer: Quantizer) -> Tensor:
    """Returns the weights that the codes stand for: (out, in), float32."""
    codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros

    def each(values: Tensor) -> Tensor:
        return values.float().repeat_interleave(quantizer.group, dim=1)[:, : codes.shape[1]]

    weight = torch.empty(codes.shape, device=codes.device)
    step = _rows(codes)
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        zero = quantizer.levels // 2 if zeros is None else each(zeros[rows])
        torch.mul(codes[rows].float().sub_(zero), each(scales[rows]), out=weight[rows])
    return weight


def rounded(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Returns `weight`: (out, in) as it comes back from its codes, in its own dtype."""
    return dequantize(quantize(weight, quantizer), quantizer).to(weight.dtype)


def apply(model: PreTrainedModel, quantization: Quantization) -> None:
    """Replaces the targets' weights, and the embeddings if asked, by what their codes stand for."""
    for target in prunable(model):
        target.write(rounded(target.weight, quantization.weights))
    if quantization.embeddings is not None:
        for table in embedding_tables(model):
            table.write(rounded(table.weight, quantization.embeddings))


def _rows(matrix: Tensor) -> int:
    return max(1, _CHUNK // matrix.shape[1])


def _half_up(values: Tensor) -> Tensor:
    """Rounds values ≥ 0 up to float16, so that no code falls out of its range."""
    half = values.half()
    # Neighbouring positive floats are neighbouring integers.
    return half.view(torch.int16).add_(half.float() < values).view(torch.float16)


def _step(scales: Tensor) -> Tensor:
    """Scales to divide by: where all of a group is zero, anything will do."""
    return torch.where(scales > 0, scales.float(), 1.0)
