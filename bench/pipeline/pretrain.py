"""`sparsebench pretrain`: a small GPT-2 from random numbers, on text that is at hand.

A machine without the hub has no GPT-2; this makes one (`gpt2-mini`, Conv1D and all) whose numbers
mean something on the text that it has seen. The recipe is in `Recipe`, written beside the weights;
the same recipe on the same text gives the same bytes on the same machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.core import seeds
from bench.core.cell import REFERENCE, Budget
from bench.core.errors import BenchError
from bench.core.files import cache_dir, write_folder_atomically
from bench.core.parameters import parameters
from bench.planning import registry
from bench.sources import catalog, token_windows
from bench.sources.saving import save_model
from bench.training import train
from bench.training.cell_trainer import Progress

SLUG = "gpt2-mini"
END = "<|endoftext|>"


@parameters
class Recipe:
    """Architecture and training; 6.0 M parameters by default."""

    layers: int = Field(default=6, ge=1, description="transformer blocks")
    width: int = Field(default=256, ge=1, description="hidden size")
    heads: int = Field(default=4, ge=1, description="attention heads of a block")
    positions: int = Field(default=512, ge=1, description="tokens that the model can see")
    vocabulary: int = Field(default=4096, ge=257, description="size of the byte-level BPE")
    steps: int = Field(default=800, ge=1, description="optimizer updates")
    batch: int = Field(default=32, ge=1, description="sequences an update")
    length: int = Field(default=128, ge=1, description="tokens a sequence")
    lr: float = Field(
        default=5e-4,
        gt=0,
        description="learning rate at hidden size 768; hidden matrices scale it by 768 / width",
    )
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="fraction of the steps")
    seed: int = Field(default=1, ge=0, description="of weights and order")


class _Text:
    """Documents as a training task: windows over their ids, an end token after each."""

    def __init__(self, name: str, documents: Sequence[str]) -> None:
        self.name, self.documents = name, documents

    def train(self, tok: Any) -> Dataset:
        ids = [
            i for row in tok(list(self.documents))["input_ids"] for i in (*row, tok.eos_token_id)
        ]
        rows = token_windows.cut(torch.tensor(ids), tok.model_max_length, self.name).tolist()
        length = [tok.model_max_length] * len(rows)
        return Dataset.from_dict({"input_ids": rows, "labels": rows, "length": length})

    def collator(self, tok: Any) -> Callable[[list[Any]], dict[str, torch.Tensor]]:
        return lambda rows: {
            key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")
        }


def pretrain(sources: Sequence[str], recipe: Recipe, progress: Progress) -> Path:
    """Makes `gpt2-mini` in the cache and returns its folder.

    Args:
        sources: tasks with running text (`nlg/e2e`, `wikitext`), of which the train split is used,
            and folders of .txt files, whose paragraphs are the documents.
        recipe: of model and training.
        progress: is told of every update.

    Raises:
        BenchError: no text, too little of it, or nowhere to write.
    """
    documents = []
    for source in sources:
        found = list(_documents(source))
        if not found:
            raise BenchError(f"{source} holds no text")
        documents += found
    tok = _tokenizer(documents, recipe.vocabulary)
    tok.model_max_length = recipe.length
    seeds.seed_all(seeds.derive("pretrain", recipe.seed))
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tok),
            n_layer=recipe.layers,
            n_embd=recipe.width,
            n_head=recipe.heads,
            n_positions=recipe.positions,
            bos_token_id=tok.eos_token_id,
            eos_token_id=tok.eos_token_id,
        )
    )
    dense = registry.method(REFERENCE)
    hyper = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "warmup": recipe.warmup}
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    train.fit(
        dense(dense.Params(**hyper)),
        model,
        tok,
        _Text(" ".join(sources), documents),  # type: ignore[arg-type]
        Budget(steps=recipe.steps, batch=recipe.batch, length=recipe.length),
        recipe.seed,
        progress,
    )
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return _keep(model, tok, {"sources": list(sources), "text_sha256": digest, **asdict(recipe)})


def _documents(source: str) -> Iterable[str]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        for file in sorted(folder.glob("*.txt")):
            paragraphs = file.read_text(encoding="utf-8").split("\n\n")
            yield from (p.strip() for p in paragraphs if p.strip())
        return
    task = registry.task(source)
    if not hasattr(task, "documents"):
        raise BenchError(f"{source} has no running text; name an nlg task, wikitext or a folder")
    yield from task.documents()


def _tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import ByteLevelBPETokenizer

    core = ByteLevelBPETokenizer()
    core.train_from_iterator(
        documents, vocab_size=vocabulary, special_tokens=[END], show_progress=False
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, bos_token=END, eos_token=END, unk_token=END
    )
    return tok


def _keep(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, recipe: dict[str, Any]) -> Path:
    place = cache_dir() / "hub" / catalog.PLACES[SLUG].repo
    with write_folder_atomically(place, existing="replace") as folder:
        save_model(model, folder)
        tok.save_pretrained(folder)
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return place
