"""Architectures: from a name to a config, from a config to a class and to an empty model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as hf_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bench.api import Task
from bench.core.errors import BenchError, one_line
from bench.sources import catalog, hub
from bench.weights.unstacked import unstack

CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}

CONFIGS = Path(__file__).with_name("configs")
"""Architectures of the models that papers count, `<slug>.json`."""


def config_of(name: str) -> PreTrainedConfig:
    """The architecture that a slug, a hub id, a folder or a config file names.

    Only a hub id, or a slug whose config is not shipped, may have to be fetched: its config alone.

    Raises:
        BenchError: nothing of that name, or no config of a known architecture.
    """
    path = Path(name).expanduser()
    config: PreTrainedConfig
    try:
        if ships(name):  # a slug whose weights need not be here, or no slug at all
            config = AutoConfig.for_model(**json.loads(_shipped(name).read_text()))
        elif path.is_file() or (path / "config.json").is_file():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
        else:
            shipped = [file.stem for file in CONFIGS.glob("*.json")]
            config = config_at(catalog.place_of(name, shipped))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{name}: no usable config: {one_line(error)}") from None
    return config


def config_at(place: catalog.Place) -> PreTrainedConfig:
    """Returns the config of a model, fetched alone where it has to be.

    Raises:
        BenchError: `offline` with the repository id, or a model that is not on this machine.
    """
    if (known := known_config(place)) is not None:
        return known
    if place.command:
        raise BenchError(f"{place.name} is not on this machine yet; run: {place.command}")
    hub.give_up_early()
    config: PreTrainedConfig
    try:
        config = AutoConfig.from_pretrained(place.repo, revision=place.revision or "main")
    except OSError:
        raise hub.offline(place.repo) from None
    return config


def known_config(place: catalog.Place) -> PreTrainedConfig | None:
    """Returns the config of a model where nothing has to be fetched for it, else None.

    Raises:
        BenchError: the config is there, but of no architecture of transformers.
    """
    quiet()
    config: PreTrainedConfig
    try:
        if place.tiny is not None:
            config = AutoConfig.for_model(place.repo, **place.tiny)
        elif (folder := hub.find(place.repo)) is not None and (folder / "config.json").is_file():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        elif ships(place.name):
            config = AutoConfig.for_model(**json.loads(_shipped(place.name).read_text()))
        else:
            return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{place.name}: no usable config: {one_line(error)}") from None
    return config


def ships(name: str) -> bool:
    """Whether the config of a slug lies beside this module."""
    return "/" not in name and _shipped(name).is_file()


def _shipped(name: str) -> Path:
    return CONFIGS / f"{name}.json"


def class_of(config: PreTrainedConfig, head: str | None = None) -> type[PreTrainedModel]:
    """Returns the class with a head of `CLASSES`; by default encoders classify, others write.

    Raises:
        BenchError: the architecture has no such head.
    """
    head = head or _usual_head(config)
    kind: type[PreTrainedModel] | None = CLASSES[head]._model_mapping.get(type(config), None)
    if kind is None:
        raise BenchError(f"architecture {config.model_type} has no {head} model")
    return kind


def _usual_head(config: PreTrainedConfig) -> str:
    # Many configs have no such attribute.
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq-lm"
    sees_ahead = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if sees_ahead and not getattr(config, "is_decoder", False):
        return "classification"
    return "causal-lm"


def for_task(
    config: PreTrainedConfig, task: Task
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Returns the class and the config of a model with the task's head.

    Raises:
        BenchError: the architecture has no such head.
    """
    config = copy.deepcopy(config)
    if task.head == "classification":
        config.num_labels = task.labels
    return class_of(config, task.head), config


def saved_class(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """Returns the class that a saved model's config names; foreign code is never run.

    Raises:
        BenchError: it names no model class of transformers itself.
    """
    declared = (config.architectures or ["none"])[0]
    kind = getattr(transformers, declared, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise BenchError(f"{name}: architecture {declared!r} is no model class of transformers")
    return kind


def saved_config(folder: Path, name: str, **changes: Any) -> PreTrainedConfig:
    """Returns the config of a saved model.

    Args:
        folder: with a config.json.
        name: how messages name the model.
        changes: fields of the config that get other values.

    Raises:
        BenchError: no config of a known architecture, or that of quantized weights.
    """
    quiet()
    config: PreTrainedConfig
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **changes
        )
    except Exception as error:  # transformers raises anything on a foreign config
        raise BenchError(f"{name}: no usable config.json: {one_line(error)}") from None
    if getattr(config, "quantization_config", None):
        raise BenchError(f"{name} is quantized; pass plain weights")
    return config


def quiet() -> None:
    """Keeps transformers from warning and from drawing bars."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def empty(kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of class `kind` in float32 on the meta device, with attention that can be counted.

    Raises:
        BenchError: the config makes no model.
    """
    quiet()
    if kind.config_class is config.sub_configs.get("text_config"):  # the writer of a larger model
        config = config.get_text_config()
    config = copy.deepcopy(config)
    config.use_cache = False
    # Classifiers on decoders look for the last token that is none.
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    model: PreTrainedModel
    try:
        with torch.device("meta"):
            model = kind(config)
            unstack(model)
    except Exception as error:  # transformers raises anything on a foreign config
        raise BenchError(f"{kind.__name__}: unusable config: {one_line(error)}") from None
    fix_shapes(model)
    return model


def fix_shapes(model: PreTrainedModel) -> None:
    """Chooses forms of attention and experts whose products have shapes that no value decides."""
    model.set_attn_implementation("eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
