"""Architectures: from a name to a config, from a config to an empty model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as hf_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bench.core.errors import BenchError, one_line, unknown
from bench.sources import catalog, hub

CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}

CONFIGS = Path(__file__).with_name("configs")
"""Architectures of the models that papers count, `<slug>.json`."""


def config_of(name: str) -> PreTrainedConfig:
    """The architecture that a slug, a hub id, a folder or a config file names.

    Only a hub id, or a slug whose config is not shipped, may have to be fetched: its config alone.

    Raises:
        BenchError: nothing of that name, or no config of a known architecture.
    """
    place, path = catalog.PLACES.get(name), Path(name).expanduser()
    config: PreTrainedConfig
    try:
        if ships(name):
            config = AutoConfig.for_model(**json.loads((CONFIGS / f"{name}.json").read_text()))
        elif place is not None and place.tiny is not None:
            config = AutoConfig.for_model(place.repo, **place.tiny)
        elif path.is_file() or (path / "config.json").is_file():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
        else:
            config = _fetched(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{name}: no usable config: {one_line(error)}") from None
    return config


def _fetched(name: str) -> PreTrainedConfig:
    place = catalog.PLACES.get(name)
    if place is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        known = {*catalog.PLACES, *(path.stem for path in CONFIGS.glob("*.json"))}
        raise unknown("model", name, known)
    place = place or catalog.Place(name)
    config: PreTrainedConfig
    if (found := hub.find(place.repo)) is not None:
        config = AutoConfig.from_pretrained(found, local_files_only=True)
        return config
    if place.command:
        raise BenchError(f"{name} has not been made on this machine yet; run: {place.command}")
    hub.give_up_early()
    try:
        config = AutoConfig.from_pretrained(place.repo, revision=place.revision or "main")
    except OSError:
        raise hub.offline(place.repo) from None
    return config


def ships(name: str) -> bool:
    """Whether the config of a slug lies beside this module."""
    return "/" not in name and (CONFIGS / f"{name}.json").is_file()


def class_of(config: PreTrainedConfig, head: str | None = None) -> type[PreTrainedModel]:
    """The class with a head of `models.CLASSES`; by default encoders classify, others write."""
    if head is None:
        encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        head = "classification" if encoder and not config.is_decoder else "causal-lm"
    try:
        with torch.device("meta"):
            return type(CLASSES[head].from_config(config))
    except ValueError:
        raise BenchError(f"architecture {config.model_type} has no {head} model") from None


def empty(kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of class `kind` in float32 on the meta device, with attention that can be counted."""
    hf_logging.set_verbosity_error()
    config = copy.deepcopy(config)
    config.use_cache = False
    if config.pad_token_id is None:  # classifiers on decoders look for the last token that is none
        config.pad_token_id = 0
    with torch.device("meta"):
        model: PreTrainedModel = kind(config)
    model.set_attn_implementation("eager")
    return model
