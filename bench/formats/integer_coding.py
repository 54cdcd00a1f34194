"""Small integers in bytes, and the places of N kept inputs of M as one such integer.

Numbers below a base B lie in words of w bytes, little-endian, as the digits of one number in base
B, the first one lowest. w is the one, of up to 7, that takes the fewest bits a number: a byte
holds eight bits, two codes of four bits, or three of the 6 ways to keep 2 inputs of 4.
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
"""The largest base: a word is an int64 without its highest byte, so that none is negative."""

_CHUNK = 1 << 20  # elements worked on at a time: their int64 copies stay small


@lru_cache
def word(base: int) -> tuple[int, int]:
    """Returns (numbers in a word, bytes of a word) for numbers below `base`, 2 … `LARGEST`."""
    found = []
    for size in range(1, 8):
        count = 0
        while base ** (count + 1) <= 256**size:
            count += 1
        if count:
            found.append((Fraction(size, count), count, size))
    _, count, size = min(found)  # of equally good ones the smaller word has fewer numbers
    return count, size


def nbytes(count: int, base: int) -> int:
    """Bytes of `count` numbers below `base`."""
    each, size = word(base)
    return -(-count // each) * size


def pack_digits(values: Tensor, base: int) -> Tensor:
    """Integers below `base`, (n,), as `nbytes(n, base)` bytes; the last word ends in zeros.

    Those below 256 are uint8, others int64.
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
    """Returns the `count` integers that `pack_digits` packed.

    Raises:
        BenchError: bytes that `pack_digits` does not write.
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
            raise BenchError(f"a word is no {each} numbers below {base}")
        return digits.flatten()

    values = _in_chunks(unpacked, packed, _CHUNK // size * size)
    if bool(values[count:].any()):
        raise BenchError(f"the last word holds more than the {count} numbers that there are")
    return values[:count]


def number_groups(keep: Tensor, n: int) -> Tensor:
    """Returns the number of each group's arrangement, (groups,), below C(M, N).

    It is Σ C(p_i, i) over the places p_1 < … < p_N of the kept ones (the combinatorial number
    system: Knuth, TAOCP 7.2.1.3, theorem L).

    Args:
        keep: (groups, M), exactly `n` in each group.
        n: N.
    """
    m = keep.shape[1]
    choose = _choose(n, m, keep.device)
    places = torch.arange(m, device=keep.device)
    dtype = torch.uint8 if math.comb(m, n) <= 256 else torch.int64

    def numbers(chunk: Tensor) -> Tensor:
        return (choose[places, chunk.cumsum(dim=1)] * chunk).sum(dim=1).to(dtype)

    return _in_chunks(numbers, keep, max(1, _CHUNK // m))


def groups_of_numbers(numbers: Tensor, n: int, m: int) -> Tensor:
    """Returns the groups that `number_groups` numbered: (groups, M), exactly `n` in each.

    Args:
        numbers: (groups,), below C(M, N).
        n: N.
        m: M.
    """
    choose = _choose(n, m, numbers.device)

    def groups(chunk: Tensor) -> Tensor:
        rest, left = chunk.long(), torch.full_like(chunk, n, dtype=torch.int64)
        keep = torch.empty((len(chunk), m), dtype=torch.bool, device=chunk.device)
        for place in reversed(range(m)):
            # As many arrangements keep all that are left below this place; they come first.
            below = choose[place][left]
            kept = rest >= below
            keep[:, place] = kept
            rest = rest - below * kept
            left = left - kept.long()
        return keep

    return _in_chunks(groups, numbers, max(1, _CHUNK // m))


def _powers(base: int, device: torch.device) -> Tensor:
    """Returns 1, B, B², …: what the digits of a word stand for."""
    return torch.tensor([base**i for i in range(word(base)[0])], device=device)


def _choose(n: int, m: int, device: torch.device) -> Tensor:
    """Returns C(p, i) of each place p and count i: (M, N + 1)."""
    return torch.tensor([[math.comb(p, i) for i in range(n + 1)] for p in range(m)], device=device)


def _in_chunks(function: Callable[[Tensor], Tensor], values: Tensor, size: int) -> Tensor:
    return torch.cat([function(chunk) for chunk in values.split(size)])
