"""What a model can take: how many tokens, and which token ids."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from bench.core.errors import BenchError


def positions(config: Any, wanted: int) -> int | None:
    """Returns for how many tokens a model has positions; None where nothing limits them.

    RoBERTa's kin number their positions from `padding_idx + 1`, and their table is that much
    shorter. The table itself tells, in an empty model of one block.

    Args:
        config: the model's.
        wanted: tokens that are asked for. The table is looked at only where it decides.
    """
    limit = getattr(config, "max_position_embeddings", None)
    padding = getattr(config, "pad_token_id", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if not isinstance(padding, int) or wanted <= limit - padding - 1:
        return limit
    for name, module in _shallow(config).named_modules():
        table, offset = getattr(module, "weight", None), getattr(module, "padding_idx", None)
        if "position" in name and offset is not None and isinstance(table, Tensor):
            return int(table.shape[0]) - int(offset) - 1
    return limit


def _shallow(config: Any) -> nn.Module:
    """Returns an empty model, of one block where the architecture allows that."""
    shorter = copy.deepcopy(config)
    with contextlib.suppress(Exception):  # an architecture raises anything
        shorter.num_hidden_layers = 1
    for wanted in (shorter, config):
        with contextlib.suppress(Exception), torch.device("meta"):
            model: nn.Module = AutoModel.from_config(wanted)
            return model
    return nn.Module()


def check_length(config: Any, length: int, name: str) -> None:
    """Refuses sequences longer than the model has positions for.

    Raises:
        BenchError: with both numbers.
    """
    limit = positions(config, length)
    if limit is not None and limit < length:
        raise BenchError(f"length {length}: {name} has positions for {limit} tokens")


def embedding_rows(model: PreTrainedModel) -> int:
    """Returns how many token ids the model knows: the rows of its input embedding."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def check_ids(batches: Iterable[dict[str, Tensor]], model: PreTrainedModel, source: str) -> None:
    """Refuses token ids that the model has no embedding for.

    Args:
        batches: with `input_ids`.
        model: which is to read them.
        source: begins the message.

    Raises:
        BenchError: with the range of both.
    """
    ids = [batch["input_ids"] for batch in batches if "input_ids" in batch]
    if not ids:
        return
    low, high = min(int(i.min()) for i in ids), max(int(i.max()) for i in ids)
    if low < 0 or high >= embedding_rows(model):
        raise BenchError(
            f"{source}: token ids from {low} to {high}, "
            f"the model knows 0 to {embedding_rows(model) - 1}"
        )


def check_tokenizer(tok: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Refuses a tokenizer that puts ids into texts or padding that the model does not know.

    Further special tokens may lie beyond: no text of a task holds them.

    Raises:
        BenchError: with the token and its id.
    """
    rows = embedding_rows(model)
    extra = set(tok.get_added_vocab())
    ids = {token: i for token, i in tok.get_vocab().items() if token not in extra}
    for kind in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        token, i = getattr(tok, f"{kind}_token", None), getattr(tok, f"{kind}_token_id", None)
        if token is not None and i is not None:
            ids[token] = i
    token = max(ids, key=lambda token: ids[token], default=None)
    if token is not None and ids[token] >= rows:
        raise BenchError(
            f"{name}: the tokenizer knows {token!r} as id {ids[token]}, "
            f"the model knows 0 to {rows - 1}"
        )
