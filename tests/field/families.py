"""Tiny random models of any architecture of transformers, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from bench.sources.tiny_models import tiny_tokenizer

SIZES = {
    "vocab_size": 261,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
"""Sizes in BERT's words; a family with other words passes None for these and its own."""

OWN = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OWN += ("max_position_embeddings",)
"""Sizes that a family with its own words leaves out."""

T5 = dict.fromkeys(OWN) | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GPT2 = dict.fromkeys(OWN) | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}


def build(kind: str, head: str = "CausalLM", seed: int = 0, **more):
    """A random model of the family `kind`, in eval mode; None in `more` leaves a size out."""
    sizes = {name: value for name, value in (SIZES | more).items() if value is not None}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(seed)
    return getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()


def save(folder: Path, kind: str, head: str = "CausalLM", seed: int = 0, **more) -> Path:
    """Writes such a model with a tokenizer of 261 tokens; returns the folder."""
    build(kind, head, seed, **more).save_pretrained(folder)
    tiny_tokenizer("gpt2" if head == "CausalLM" else "bert").save_pretrained(folder)
    return Path(folder)


def ids(rows: int = 8, length: int = 24) -> list[list[int]]:
    """Token ids to calibrate on: (rows, length)."""
    return [[(7 * i + 13 * j) % 250 + 5 for j in range(length)] for i in range(rows)]
