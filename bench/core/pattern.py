"""Sparsity patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.core.errors import BenchError

Pattern = str
"""`dense | unstructured | N:M (N kept of M) | block:RxC | rows (whole outputs of a matrix) |
heads | neurons | heads+neurons | block:RxC+neurons (blocks in attention, neurons in the FFN)`."""
PATTERN = re.compile(
    r"dense|unstructured|[1-9]\d?:[1-9]\d?|block:\d+x\d+(\+neurons)?"
    r"|rows|heads|neurons|heads\+neurons"
)


def makes(declared: Iterable[Pattern], pattern: Pattern) -> bool:
    """Whether a method that declares `declared` makes `pattern`; `N:M`, `block:RxC` are open."""
    family = re.sub(r"^\d+:\d+$", "N:M", re.sub(r"^block:\d+x\d+", "block:RxC", pattern))
    return pattern in declared or family in declared


DEFAULT_PATTERN = {"N:M": "2:4", "block:RxC": "block:16x16"}


def own_sparsity(pattern: str) -> float | None:
    """The sparsity that the pattern itself fixes; None where it is free.

    Raises:
        BenchError: N:M that prunes nothing.
    """
    if pattern == "dense":
        return 0.0
    if not makes(("N:M",), pattern):
        return None
    kept, group = map(int, pattern.split(":"))
    if kept >= group:
        raise BenchError(f"pattern {pattern}: N:M keeps N of M, so N must be below M")
    return round(1 - kept / group, 4)


def pattern_slug(pattern: str) -> str:
    """`2:4` → `2of4`, `block:16x16` → `block-16x16`, `heads+neurons` → `heads-neurons`."""
    if re.fullmatch(r"\d+:\d+", pattern):
        return pattern.replace(":", "of")
    return pattern.replace(":", "-").replace("+", "-")
