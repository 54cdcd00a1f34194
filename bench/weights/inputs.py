"""Token ids for a forward pass, with those of a decoder where there is one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def some_inputs(model: PreTrainedModel, length: int = 8) -> dict[str, Tensor]:
    """Returns one sequence of token ids that the model knows; it ends with the end token."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    ids = (torch.arange(length, device=model.device) + len(table) // 2) % len(table)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < len(table):
        ids[-1] = end
    return with_decoder_inputs(model, {"input_ids": ids[None]})


def with_decoder_inputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the decoder's inputs where there is a decoder: the same tokens, one place later."""
    takes = inspect.signature(model.forward).parameters
    if "decoder_input_ids" not in takes or "decoder_input_ids" in batch:
        return batch
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    starts = (getattr(model.config, name, None) for name in names)
    ids = batch["input_ids"].roll(1, dims=1)
    ids[:, 0] = next((start for start in starts if isinstance(start, int)), 0)
    return batch | {"decoder_input_ids": ids}
