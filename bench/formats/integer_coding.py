"""Packs small integers into bytes, and the positions of N kept inputs of M into one integer.

Integers below a base B are packed into words of w bytes, little-endian. A word holds them as the
digits of one number in base B, the first digit lowest. w is the size up to 7 that takes the fewest
bits an integer. So a byte holds eight bits, two codes of four bits, or three of the 6 ways to keep
2 inputs of 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError

LARGEST = 2**56
"""The largest base. A word is an int64 without its highest byte, so it is never negative."""

_CHUNK = 1 << 20  # elements of one step, so that their int64 copies stay small


@lru_cache
def word(base: int) -> tuple[int, int]:
    """Returns (numbers in a word, bytes of a word) for numbers below `base`, 2 … `LARGEST`."""
    sizes = []
    for size in range(1, 8):
        count = 0
        while base ** (count + 1) <= 256**size:
            count += 1
        if count:
            sizes.append((Fraction(size, count), count, size))
    _, count, size = min(sizes)  # of equally good ones the smaller word has fewer numbers
    return count, size


def packed_bytes(count: int, base: int) -> int:
    """Returns the bytes that `count` numbers below `base` take."""
    each, size = word(base)
    return -(-count // each) * size


def pack_digits(values: Tensor, base: int) -> Tensor:
    """Packs integers (n,) below `base` into `packed_bytes(n, base)` bytes, uint8.

    Integers are uint8 for a base up to 256, else int64. Zeros fill the last word.
    """
    if base == 256:
        return values
    each, size = word(base)
    powers = _powers(base, values.device)

    def packed(chunk: Tensor) -> Tensor:
        digits = F.pad(chunk, (0, -len(chunk) % each)).view(-1, each)
        if size == 1:
            return (digits * powers.to(torch.uint8)).sum(dim=1, dtype=torch.uint8)
        words = (digits * powers).sum(dim=1)
        return words.view(torch.uint8).view(-1, 8)[:, :size].flatten()

    return _in_chunks(packed, values, _CHUNK // each * each)


def unpack_digits(packed: Tensor, base: int, count: int) -> Tensor:
    """Returns the `count` integers that `pack_digits` packed, (count,).

    Raises:
        BenchError: `pack_digits` does not write such bytes.
    """
    if base == 256:
        return packed
    each, size = word(base)
    powers = _powers(base, packed.device)
    dtype = torch.uint8 if base <= 256 else torch.int64
    table = (torch.arange(256, device=packed.device)[:, None] // powers % base).to(dtype)

    def unpacked(chunk: Tensor) -> Tensor:
        if size == 1:
            words = chunk.int()
            digits = table.index_select(0, words)
        else:
            words = F.pad(chunk.view(-1, size), (0, 8 - size)).view(torch.int64).flatten()
            digits = (words[:, None] // powers % base).to(dtype)
        if bool((words >= base**each).any()):
            raise BenchError(f"a word does not hold {each} numbers below {base}")
        return digits.flatten()

    values = _in_chunks(unpacked, packed, _CHUNK // size * size)
    if bool(values[count:].any()):
        raise BenchError(f"the last word holds more than {count} numbers")
    return values[:count]


def number_groups(keep: Tensor, n: int) -> Tensor:
    """Numbers the arrangement of each group: (groups,), below C(M, N).

    The number is Σ C(p_i, i) over the positions p_1 < … < p_N of the kept inputs (combinatorial
    number system: Knuth, TAOCP 7.2.1.3, theorem L).

    Args:
        keep: (groups, M), with exactly `n` kept inputs in each group.
        n: kept inputs of a group, N.
    """
    m = keep.shape[1]
    choose = _choose(n, m, keep.device)
    positions = torch.arange(m, device=keep.device)
    dtype = torch.uint8 if math.comb(m, n) <= 256 else torch.int64

    def numbers(chunk: Tensor) -> Tensor:
        return (choose[positions, chunk.cumsum(dim=1)] * chunk).sum(dim=1).to(dtype)

    return _in_chunks(numbers, keep, max(1, _CHUNK // m))


def groups_of_numbers(numbers: Tensor, n: int, m: int) -> Tensor:
    """Inverts `number_groups`: returns (groups, M) with exactly `n` kept inputs in each group.

    Args:
        numbers: (groups,), below C(M, N).
        n: kept inputs of a group, N.
        m: inputs of a group, M.
    """
    choose = _choose(n, m, numbers.device)

    def groups(chunk: Tensor) -> Tensor:
        rest, left = chunk.long(), torch.full_like(chunk, n, dtype=torch.int64)
        keep = torch.empty((len(chunk), m), dtype=torch.bool, device=chunk.device)
        for position in reversed(range(m)):
            # `below` arrangements keep all remaining inputs below this position; they come first.
            below = choose[position][left]
            kept = rest >= below
            keep[:, position] = kept
            rest = rest - below * kept
            left = left - kept.long()
        return keep

    return _in_chunks(groups, numbers, max(1, _CHUNK // m))


def _powers(base: int, device: torch.device) -> Tensor:
    """Returns the values of a word's digits: 1, B, B², … up to B^(digits − 1)."""
    return torch.tensor([base**i for i in range(word(base)[0])], device=device)


def _choose(n: int, m: int, device: torch.device) -> Tensor:
    """Returns C(p, i) for each position p and count i: (M, N + 1)."""
    return torch.tensor([[math.comb(p, i) for i in range(n + 1)] for p in range(m)], device=device)


def _in_chunks(function: Callable[[Tensor], Tensor], values: Tensor, size: int) -> Tensor:
    return torch.cat([function(chunk) for chunk in values.split(size)])
