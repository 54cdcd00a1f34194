"""A stream of token ids cut into sequences, for language-model tasks and for `prune`."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.errors import BenchError


def cut(ids: Tensor, length: int, what: str) -> Tensor:
    """Consecutive windows that do not overlap: (n, length); the ragged rest is dropped.

    Args:
        ids: (tokens,).
        length: tokens a window.
        what: names the stream in the message.

    Raises:
        BenchError: the stream is shorter than one window.
    """
    _check(ids, length, what)
    return ids[: len(ids) // length * length].view(-1, length)


def spread(windows: Tensor, n: int | None) -> Tensor:
    """`n` of these windows, (windows, length), as evenly spread as can be; all for None."""
    if n is None or n >= len(windows):
        return windows
    return windows[torch.arange(n) * len(windows) // n]


def draw(ids: Tensor, n: int, length: int, seed: int, what: str) -> Tensor:
    """`n` windows that start at places drawn uniformly by `seed`: (n, length).

    Raises:
        BenchError: the stream is shorter than one window.
    """
    _check(ids, length, what)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length + 1, (n,), generator=generator)
    return ids[starts[:, None] + torch.arange(length)]


def batches(sequences: list[Tensor], size: int = 8) -> list[dict[str, Tensor]]:
    """Sequences in batches as a model takes them, padded on the right where lengths differ."""
    found = []
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        lengths = torch.tensor([len(row) for row in part])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def _check(ids: Tensor, length: int, what: str) -> None:
    if len(ids) < length:
        raise BenchError(f"{what} has {len(ids)} tokens, fewer than one window of {length}")
