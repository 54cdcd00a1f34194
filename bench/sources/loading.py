"""From a folder or a place to a model and its tokenizer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bench.api import Task
from bench.core import provenance, seeds
from bench.core.errors import BenchError, one_line
from bench.core.record_parts import Model
from bench.sources import limits, pypi_assets
from bench.sources.architectures import class_of, quiet, saved_class, saved_config
from bench.sources.catalog import Place, folder_of
from bench.sources.checkpoints import weight_files
from bench.sources.tiny_models import tiny_model, tiny_tokenizer
from bench.weights import side_branch, slicing
from bench.weights.unstacked import unstack


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
    limits.check_length(config, length, name)


def load_model(
    folder: Path,
    kind: type[PreTrainedModel] | None = None,
    stored_dtype: bool = False,
    name: str = "",
) -> PreTrainedModel:
    """Loads a saved model, complete, be it plain, sliced or with side branches.

    Args:
        folder: with a config.json and safetensors.
        kind: the model's class; by default the one that the config names.
        stored_dtype: whether the weights keep their dtype; by default they become float32.
        name: how messages name the model; by default as the folder is called.

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        BenchError: the folder holds no such model, or only parts of one.
    """
    name = name or folder.name
    config = saved_config(folder, name)
    model, missing = _read(folder, kind or saved_class(config, name), config, stored_dtype, name)
    if missing:
        # They would be drawn at random and then written as if they had been trained.
        raise BenchError(f"{name}: no weights for {missing[0]} ({len(missing)} missing)")
    return model


def load_for_task(place: Place, task: Task, seed: int, weights: Path | None = None) -> Loaded:
    """Loads the model with the task's head, and its tokenizer, which cuts nothing yet.

    Args:
        place: where the weights lie.
        task: decides the head; a new head is drawn from N(0, 0.02²) by `seed`.
        seed: the cell's.
        weights: a folder of trained weights that takes the model's place.

    Raises:
        BenchError: `offline`, no model of this task, or a tokenizer of another model.
    """
    quiet()
    folder = folder_of(place)
    labels = {"num_labels": task.labels} if task.head == "classification" else {}
    tok: PreTrainedTokenizerBase
    if folder is None:
        tok = tiny_tokenizer(place.repo)
        seeds.seed_all(seeds.derive("head", seed))
        model = tiny_model(place, task, labels, tok)
        revision = "random"
    else:
        tok = _read_tokenizer(folder)
        if tok.pad_token is None:
            tok.pad_token = tok.eos_token
        config = saved_config(folder, place.name, **labels)
        kind = class_of(config, task.head)
        seeds.seed_all(seeds.derive("head", seed))
        model, _ = _read(folder, kind, config, False, place.name)
        asset = pypi_assets.ASSETS.get(place.repo)
        revision = asset.revision if asset else place.revision or "folder"
    limits.check_tokenizer(tok, model, place.name)
    model.config.pad_token_id = tok.pad_token_id
    if weights is not None:
        model = load_model(weights, type(model))
    digest = provenance.weights_sha256(model.state_dict())
    return Loaded(model, tok, Model(source=place.repo, revision=revision, weights_sha256=digest))


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Loads the folder's tokenizer, if it has one.

    Raises:
        BenchError: it has one that is of no use.
    """
    if not any(next(folder.glob(name), None) for name in TOKENIZER_FILES):
        return None
    return _read_tokenizer(folder)


_SENTENCEPIECE = ("sentencepiece", "google.protobuf")
"""What transformers reads a sentencepiece model with."""


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    needs = not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model"))
    if needs and not all(map(_installed, _SENTENCEPIECE)):
        raise BenchError(
            f"{folder}: its tokenizer is a sentencepiece model; "
            "run: pip install 'sparsebench[sentencepiece]'"
        )
    try:
        tok: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BenchError(f"{folder}: no usable tokenizer: {one_line(error)}") from None
    return tok


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of the package around it
        return False


def _read(
    folder: Path, kind: Any, config: Any, stored_dtype: bool, name: str
) -> tuple[PreTrainedModel, list[str]]:
    """Returns the model, and what the folder has no weights for: that is drawn at random."""
    files = weight_files(folder)
    if not files:
        raise BenchError(f"{name} holds no safetensors; pickled weights are refused")
    model: Any
    try:
        sliceable = _shrunk(kind) if getattr(config, "sliced", None) else kind
        model, report = sliceable.from_pretrained(
            folder,
            config=config,
            dtype="auto" if stored_dtype else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        if report["mismatched_keys"]:
            key, *sizes = sorted(report["mismatched_keys"])[0]
            stored, made = (tuple(size) for size in sizes)
            raise BenchError(
                f"{name}: cannot be loaded: size mismatch: {key} is {stored} in the file and "
                f"{made} by the config"
            )
        model.__class__ = kind
        missing = sorted(report["missing_keys"])
        unstack(model)
        side_branch.restore(model, files)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        # Want of memory is a failure of its own kind.
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        raise BenchError(f"{name}: cannot be loaded: {one_line(error)}") from None
    return (model if stored_dtype else model.float()).eval(), missing


def _shrunk(kind: Any) -> Any:
    """Returns a class that makes models with the shapes that `config.sliced` states.

    So transformers itself reads a sliced folder: names, ties and dtypes are as in any other.
    """

    def init(self: Any, config: Any, *more: Any, **named: Any) -> None:
        kind.__init__(self, config, *more, **named)
        slicing.shrink(self)

    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})
