"""Tiny models with random weights, for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bench.api import Task
from bench.sources.architectures import CLASSES
from bench.sources.catalog import Place
from bench.weights.unstacked import unstack


def tiny_tokenizer(architecture: str = "bert") -> PreTrainedTokenizerFast:
    """One token a word `w0 … w255`, for the tiny models; [CLS] and [SEP] for encoders only."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(256))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if architecture == "bert":
        core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
    )


def tiny_model(
    place: Place, task: Task, extra: dict[str, Any], tok: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Makes a tiny model with the task's head and random weights."""
    config = AutoConfig.for_model(place.repo, **{**(place.tiny or {}), **extra})
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, token, tok.pad_token_id)
    model: PreTrainedModel = CLASSES[task.head].from_config(config, dtype=torch.float32)
    unstack(model)
    return model
