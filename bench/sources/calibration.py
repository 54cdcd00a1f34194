"""Calibration sequences from texts or token ids that are at hand, in files or in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError, one_line
from bench.sources import limits, token_windows

Batches = list[dict[str, Tensor]]

LENGTH = 512
"""Tokens of a sequence, where the model has positions for them."""


def default_length(config: Any, length: int | None) -> int:
    """Returns the tokens of a sequence: `length`, or 512 or what the model has positions for."""
    return length or min(LENGTH, limits.positions(config, LENGTH) or LENGTH)


def sequences_of(values: Any, tok: Any, n: int, length: int, seed: int, source: str) -> Batches:
    """Makes at most `n` sequences of `length` tokens at most, in batches.

    Args:
        values: one text or a flat list of ids is a stream, from which windows are drawn. A list of
            texts or of lists of ids holds the sequences themselves, and so do batches as a model
            takes them.
        tok: the tokenizer, for texts; else None.
        n: number of sequences.
        length: tokens of a sequence.
        seed: draws the windows.
        source: names the values in messages.

    Raises:
        BenchError: the values are something else, too short, or texts without a tokenizer.
    """
    if isinstance(values, Mapping) and not isinstance(values.get("input_ids"), Tensor):
        values = values.get("input_ids", values)  # what a tokenizer returns
    listed = [values] if isinstance(values, Mapping) else values
    if isinstance(listed, (list, tuple)) and listed and all(map(_is_batch, listed)):
        return _cut(listed, n, length)
    texts = [values] if isinstance(values, str) else listed
    try:
        if isinstance(texts, (list, tuple)) and texts and all(isinstance(t, str) for t in texts):
            found = _of_texts(texts, isinstance(values, str), tok, length, source)
        else:
            found = _of_ids(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BenchError(f"{source}: {one_line(error)}") from None
    if isinstance(found, Tensor):
        rows = list(token_windows.draw(found, n, length, seed, source))
    else:
        rows = [row[:length] for row in found[:n]]
    return token_windows.batches(rows)


def read(path: Path) -> Any:
    """Reads a file for `sequences_of`: ids from .json or .npy, else one text.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
    """
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def _is_batch(value: Any) -> bool:
    ids = value.get("input_ids") if isinstance(value, Mapping) else None
    return isinstance(ids, Tensor) and ids.ndim == 2


def _cut(batches: Sequence[Any], n: int, length: int) -> Batches:
    """Returns the first `n` sequences, `length` tokens of each; labels are left out."""
    found, left = [], n
    for batch in batches:
        shape = batch["input_ids"].shape
        kept = {
            name: tensor[:left, :length] if tensor.shape[:2] == shape else tensor[:left]
            for name, tensor in batch.items()
            if isinstance(tensor, Tensor) and name != "labels"
        }
        if left > 0:
            found.append(kept)
        left -= shape[0]
    return found


def _of_texts(
    texts: Sequence[str], stream: bool, tok: Any, length: int, source: str
) -> Tensor | list[Tensor]:
    if tok is None:
        raise BenchError(f"{source}: wants a list of token ids; texts need a tokenizer")
    if stream:
        ids = tok(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids).long()
    rows = tok(list(texts), truncation=True, max_length=length)["input_ids"]
    return [torch.tensor(row).long() for row in rows if row]


def _of_ids(values: Any) -> Tensor | list[Tensor]:
    """Token ids: a flat list is one stream, a list of lists holds the sequences themselves."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or not values.size:
            raise ValueError(f"wants integers in one or two dimensions, not {values.dtype}")
        stream = torch.from_numpy(values.astype(np.int64))
        return stream if values.ndim == 1 else list(stream)
    if isinstance(values, (list, tuple)):
        values = [v.tolist() if isinstance(v, (Tensor, np.ndarray)) else v for v in values]
    flat = isinstance(values, list) and all(type(i) is int for i in values)
    rows = [values] if flat else values
    if not (isinstance(rows, list) and rows and all(isinstance(r, (list, tuple)) for r in rows)):
        raise ValueError("wants a list of token ids, or a list of such lists")
    if not all(row and all(type(i) is int for i in row) for row in rows):
        raise ValueError("wants lists of integers, none of them empty")
    found = [torch.tensor(row) for row in rows]
    return found[0] if flat else found
