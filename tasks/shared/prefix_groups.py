"""Inputs that begin alike, packed into one row: the shared prefix, then every rest.

A rest sees the prefix and itself:

    tokens      p p p p  a a a  b b       positions   0 1 2 3  4 5 6  4 5
    a sees      p p p p  a a a            b sees      p p p p  b b
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SHARED = 8
"""Shorter prefixes are not shared: the mask would cost more than it saves."""


@dataclass
class PrefixGroup:
    """Inputs with a common prefix, which become one row of a batch.

    Attributes:
        shared: the token ids of the prefix.
        rests: the token ids that follow it, without duplicates; some may be empty.
        members: for each rest, the numbers of the inputs that end with it.
    """

    shared: list[int]
    rests: list[list[int]]
    members: list[list[int]]

    def __len__(self) -> int:
        return len(self.shared) + sum(map(len, self.rests))


def group_by_prefix(
    inputs: Sequence[Sequence[int]], longest: int | None = None
) -> list[PrefixGroup]:
    """Groups inputs by their prefixes.

    The inputs are sorted, so that those with equal starts are adjacent. An input joins the group
    before it unless the group's prefix would lose more than a quarter, or the row would be longer
    than `longest`.
    """
    order = sorted(range(len(inputs)), key=lambda i: tuple(inputs[i]))
    groups: list[PrefixGroup] = []
    group: list[int] = []
    shared = total = 0
    for i in order:
        if group:
            common = _common(inputs[group[0]], inputs[i], shared)
            alone = len(group) == 1
            row = total + len(inputs[i]) - len(group) * common
            fits = longest is None or row <= longest
            if fits and common >= MIN_SHARED and (alone or common >= 0.75 * shared):
                shared = common
                group.append(i)
                total += len(inputs[i])
                continue
            if tuple(inputs[group[-1]]) == tuple(inputs[i]):
                group.append(i)
                total += len(inputs[i])
                continue
            groups.append(_group(inputs, group, shared))
        group, shared, total = [i], len(inputs[i]), len(inputs[i])
    if group:
        groups.append(_group(inputs, group, shared))
    return groups


def _common(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Returns the length of the common prefix, at most `limit`."""
    n = min(len(a), len(b), limit)
    return next((i for i in range(n) if a[i] != b[i]), n)


def _group(inputs: Sequence[Sequence[int]], members: list[int], shared: int) -> PrefixGroup:
    by_rest: dict[tuple[int, ...], list[int]] = {}
    for i in members:
        by_rest.setdefault(tuple(inputs[i][shared:]), []).append(i)
    prefix = list(inputs[members[0]][:shared])
    return PrefixGroup(prefix, [list(rest) for rest in by_rest], list(by_rest.values()))


def pack(rows: Sequence[PrefixGroup], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids and positions, (rows, length), and the mask, (rows, 1, length, length).

    The mask is True where the third axis's token sees the last axis's token. Padding sees itself,
    because a softmax over nothing is not a number.
    """
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    sees = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for r, row in enumerate(rows):
        p = len(row.shared)
        ids[r, :p] = torch.tensor(row.shared)
        positions[r, :p] = torch.arange(p)
        sees[r, :p, :p] = causal[:p, :p]
        start = p
        for rest in row.rests:
            n = len(rest)
            inside = slice(start, start + n)
            ids[r, inside] = torch.tensor(rest, dtype=torch.long)
            positions[r, inside] = torch.arange(p, p + n)
            sees[r, inside, :p] = True
            sees[r, inside, inside] = causal[:n, :n]
            start += n
    return ids, positions, sees[:, None]


def batches(rows: list[PrefixGroup], tokens: int) -> Iterator[list[PrefixGroup]]:
    """Yields batches of at most `tokens` tokens, the longest rows first.

    Rows of a batch are then of similar length, and too large a batch runs out of memory at once.
    """
    rows = sorted(rows, key=len, reverse=True)
    while rows:
        n = max(1, tokens // max(1, len(rows[0])))
        yield rows[:n]
        rows = rows[n:]
