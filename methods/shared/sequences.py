"""Calibration sequences as the walk takes them: without padding, with inputs for a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.api import BenchError, Context
from bench.weights.inputs import with_decoder_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sequences(model: PreTrainedModel, ctx: Context) -> list[dict[str, Tensor]]:
    """Returns the calibration sequences in batches of equal length, so that none holds padding.

    A matrix inside a block may see its inputs in any order, flattened, or routed: only where there
    is no padding are all of them real. Batches are as large as those of the task.

    Raises:
        BenchError: the task gave no sequences.
    """
    by_length: dict[int, list[dict[str, Tensor]]] = {}
    size = 1
    for batch in ctx.calibration():
        ids = next(iter(batch.values()))
        size = max(size, len(ids))
        masks = batch.get("attention_mask", torch.ones_like(ids)).bool()
        for r, real in enumerate(masks):
            row = {k: v[r][real] if v.shape[:2] == masks.shape else v[r] for k, v in batch.items()}
            if length := int(real.sum()):
                by_length.setdefault(length, []).append(row)
    if not by_length:
        raise BenchError("the task gave no calibration batches")
    return [
        with_decoder_inputs(
            model, {name: torch.stack([row[name] for row in part]) for name in part[0]}
        )
        for rows in by_length.values()
        for part in (rows[start : start + size] for start in range(0, len(rows), size))
    ]
