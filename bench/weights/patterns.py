"""Checks whether weights hold a pattern, and whether hardware can use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.pattern import Pattern
from bench.weights.targets import Target, prunable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def density(target: Target) -> float:
    """Returns the fraction of a target's weights that are not exactly zero."""
    return int(torch.count_nonzero(target.stored)) / target.stored.numel()


def holds(weight: Tensor, pattern: Pattern) -> bool:
    """Tells whether `weight` (out, in) holds the pattern; patterns without a local rule do."""
    rows, columns = weight.shape
    if pattern.n_m:
        kept, group = pattern.n_m
        if columns % group:
            return False
        return bool((weight.reshape(-1, group).count_nonzero(dim=1) <= kept).all())
    whole_outputs, whole_inputs = (1, columns), (rows, 1)
    if pattern.block:
        units = (whole_outputs, whole_inputs) if pattern.neurons else ()
        return any(_tiled(weight, unit) for unit in (pattern.block, *units))
    if pattern.blocks:
        return _tiled(weight, (rows, columns))
    return pattern.text != "rows" or _tiled(weight, whole_outputs)


def check_groups(targets: Sequence[Target], pattern: Pattern) -> None:
    """Checks that N:M divides the inputs of each matrix, before anything trains.

    Raises:
        BenchError: a matrix does not have a whole number of groups.
    """
    group = pattern.n_m[1] if pattern.n_m else 1
    for target in targets:
        if (width := target.shape[1]) % group:
            raise BenchError(
                f"pattern {pattern}: {target.name} has {width} inputs, not a multiple of {group}"
            )


_READ_HEADS = (
    "attention.output.dense",
    "attention.dense",
    "attn.dense",
    "attn.c_proj",
    "attn.out_proj",
    "attn.o_proj",
    "attention.out_lin",
    "Attention.o",
)
"""How the names of attention outputs end in transformers."""


def local(pattern: Pattern, target: Target) -> Pattern:
    """Returns the pattern that holds in one matrix: tiles of an attention output are transposed.

    The heads are the outputs of q, k and v and the inputs of the attention output, so a tile spans
    the same part of a head in all of them (arXiv 2109.04838).
    """
    if pattern.block is None or not target.name.endswith(_READ_HEADS):
        return pattern
    rows, columns = pattern.block
    return Pattern(pattern.text.replace(f"{rows}x{columns}", f"{columns}x{rows}"))


def _tiled(weight: Tensor, tile: tuple[int, int]) -> bool:
    """Tells whether each tile of (out, in) elements is all zero, or keeps more than half."""
    rows, columns = tile
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return False
    tiles = weight.unfold(0, rows, rows).unfold(1, columns, columns)
    nonzero = tiles.count_nonzero(dim=(-1, -2))
    return bool(((nonzero == 0) | (nonzero > rows * columns // 2)).all())


def halved(model: PreTrainedModel, pattern: Pattern) -> list[Target]:
    """Returns the targets that torch's 2:4 kernels accept: at most two of four weights kept.

    The kernels need a multiple of 32 outputs and of 64 inputs.
    """
    fits = pattern.n_m in ((1, 4), (2, 4))
    return [t for t in prunable(model) if fits and not t.shape[0] % 32 and not t.shape[1] % 64]


def has_kernel(device: torch.device) -> bool:
    """Tells whether the device has 16-bit kernels for 2:4 matrices (compute capability ≥ 8.0)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
