"""Sparsity patterns: where zeros may lie.

| pattern | zeros |
|---|---|
| `dense` | none |
| `unstructured` | anywhere |
| `N:M` | in every row, N of M consecutive inputs are kept |
| `block:RxC` | whole tiles of R outputs × C inputs; of C × R in attention outputs |
| `block:RxC+neurons` | tiles in attention, whole neurons in the FFN |
| `rows` | whole outputs of a matrix |
| `heads`, `neurons`, `heads+neurons` | whole attention heads, whole FFN neurons |
| `blocks` | whole transformer blocks |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from bench.core.errors import BenchError

_SYNTAX = re.compile(
    r"dense|unstructured|rows|(?P<blocks>blocks)"
    r"|(?P<n>[1-9]\d?):(?P<m>[1-9]\d?)"
    r"|block:(?P<r>\d+)x(?P<c>\d+)(?P<ffn>\+neurons)?"
    r"|(?P<heads>heads)(?P<both>\+neurons)?|(?P<neurons>neurons)"
)
_DEFAULTS = {"N:M": "2:4", "block:RxC": "block:16x16", "block:RxC+neurons": "block:16x16+neurons"}


@dataclass(frozen=True, order=True, slots=True)
class Pattern:
    """A parsed pattern. Patterns compare and sort by their text.

    Attributes:
        text: the pattern as users write it.
        n_m: (N, M) of `N:M`; None for other patterns.
        block: (outputs, inputs) of a tile of `block:RxC`, which attention outputs transpose
            (`bench.weights.patterns.local`); None for other patterns.
        heads: whether the pattern removes whole attention heads.
        neurons: whether the pattern removes whole FFN neurons.
        blocks: whether the pattern removes whole transformer blocks.

    Raises:
        ValueError: the text is not a pattern, or an N:M prunes nothing.
    """

    text: str
    n_m: tuple[int, int] | None = field(init=False, compare=False, repr=False)
    block: tuple[int, int] | None = field(init=False, compare=False, repr=False)
    heads: bool = field(init=False, compare=False, repr=False)
    neurons: bool = field(init=False, compare=False, repr=False)
    blocks: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        match = _SYNTAX.fullmatch(self.text)
        if match is None:
            raise ValueError(
                f"{self.text!r} is not a pattern; use dense, unstructured, N:M as 2:4, block:RxC "
                "as block:16x16, rows, heads, neurons, heads+neurons or blocks"
            )
        n_m = (int(match["n"]), int(match["m"])) if match["n"] else None
        if n_m and n_m[0] >= n_m[1]:
            raise ValueError(f"pattern {self.text}: N:M keeps N of M, so N must be below M")
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "n_m", n_m)
        set_field(self, "block", (int(match["r"]), int(match["c"])) if match["r"] else None)
        set_field(self, "heads", bool(match["heads"]))
        set_field(self, "neurons", bool(match["neurons"] or match["both"] or match["ffn"]))
        set_field(self, "blocks", bool(match["blocks"]))

    @property
    def family(self) -> str:
        """The name that methods declare: `N:M` and `block:RxC` stand for all of their kind."""
        if self.n_m:
            return "N:M"
        if self.block:
            return "block:RxC+neurons" if self.neurons else "block:RxC"
        return self.text

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern itself fixes; None where it is free."""
        if self.n_m:
            return round(1 - self.n_m[0] / self.n_m[1], 4)
        return 0.0 if self == DENSE else None

    @property
    def removes_units(self) -> bool:
        """Whether it removes whole heads, neurons or blocks, so that the model becomes smaller."""
        return self.heads or self.neurons or self.blocks

    @property
    def slug(self) -> str:
        """The pattern as a part of a path: `2of4`, `block-16x16`, `heads-neurons`."""
        if self.n_m:
            return self.text.replace(":", "of")
        return self.text.replace(":", "-").replace("+", "-")

    def at(self, sparsity: float) -> str:
        """Returns the pattern with its sparsity, as in tables: `unstructured 0.5`, `2:4`."""
        return self.text if self.sparsity is not None else f"{self.text} {sparsity:g}"

    def made_by(self, families: Iterable[str]) -> bool:
        """Tells whether a method that declares `families` makes this pattern."""
        return self.text in families or self.family in families

    def __str__(self) -> str:
        return self.text


DENSE = Pattern("dense")
UNSTRUCTURED = Pattern("unstructured")


def pattern_of(value: Pattern | str) -> Pattern:
    """Parses a pattern; returns a Pattern unchanged.

    Raises:
        ValueError: the text is not a pattern.
    """
    return value if isinstance(value, Pattern) else Pattern(value)


def default_of(family: str) -> Pattern:
    """Returns the pattern that a family stands for when the user names none."""
    return Pattern(_DEFAULTS.get(family, family))


PatternField = Annotated[
    Pattern, BeforeValidator(pattern_of), PlainSerializer(str, return_type=str)
]
"""A pattern in a pydantic model. JSON holds its text."""


def parse_pattern(text: str) -> Pattern:
    """Parses a pattern that a user typed.

    Raises:
        BenchError: the text is not a pattern.
    """
    try:
        return Pattern(text)
    except ValueError as error:
        raise BenchError(str(error)) from None
