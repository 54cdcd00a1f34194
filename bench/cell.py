"""A cell of the benchmark and what it is made of: pattern, budget, overrides, quantization.

Nothing here imports torch, so that the command line stays fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Pattern = str
"""`dense | unstructured | N:M (N kept of M) | block:RxC | rows (whole outputs of a matrix) |
heads | neurons | heads+neurons | block:RxC+neurons (blocks in attention, neurons in the FFN)`."""

Scalar = bool | int | float | str
Outcome = Literal["oom", "nan", "timeout", "killed", "offline", "disk", "contract", "error"]

REFERENCE = "dense"
"""The method that recovery is measured against and that one-shot methods start from."""

QUANTIZE = "export."
"""Namespace of the overrides that quantize a finished model: `export.quantize=int4`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_PATTERN = re.compile(
    r"dense|unstructured|[1-9]\d?:[1-9]\d?|block:\d+x\d+(\+neurons)?"
    r"|rows|heads|neurons|heads\+neurons"
)


class BenchError(Exception):
    """A failure that one line explains: what was wrong and what would be right.

    Args:
        message: the line.
        kind: the failure's kind as it stands in a failed record.
    """

    def __init__(self, message: str, kind: Outcome = "error") -> None:
        super().__init__(message)
        self.kind: Outcome = kind


@dataclass(frozen=True, slots=True)
class Budget:
    """What every method may spend on a task; the harness enforces it.

    Attributes:
        steps: optimizer updates.
        batch: sequences an update.
        length: tokens a sequence is cut to.
        calib: calibration sequences of a one-shot method.
        timeout_s: seconds after which a cell is stopped.
        beams: beam width of a task that generates text; 1 is greedy.
        items: scored items at most, where scoring all takes long; None for all.
        smoothing: label smoothing of a language model's training loss; None for none.
    """

    steps: int
    batch: int
    length: int
    calib: int = 128
    timeout_s: float = 3600.0
    beams: int | None = None
    items: int | None = None
    smoothing: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and value <= 0:
                raise BenchError(f"budget.{f.name} must be positive, not {value}")
        if self.smoothing is not None and self.smoothing >= 1:
            raise BenchError(f"budget.smoothing must be below 1, not {self.smoothing}")


class Quantizer(BaseModel):
    """How a matrix becomes small integers (`bench.quantize`).

    Attributes:
        name: the integers' width.
        group: neighbouring inputs that share a scale.
        asymmetric: whether every group has a zero point of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["int8", "int4"]
    group: Literal[64, 128] = 64
    asymmetric: bool = False

    @property
    def levels(self) -> int:
        """Codes are below it: 256 or 16."""
        return int(2 ** int(self.name.removeprefix("int")))

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` inputs."""
        return -(-columns // self.group)

    def __str__(self) -> str:
        return f"{self.name}/{self.group}" + (" asymmetric" if self.asymmetric else "")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a finished model is rounded to.

    Attributes:
        weights: of the targets.
        embeddings: of the embeddings and of an LM head that is not tied to them; None leaves them
            as they are. They share the weights' group and symmetry.
    """

    weights: Quantizer
    embeddings: Quantizer | None = None

    def __str__(self) -> str:
        return str(self.weights) + (f" + emb {self.embeddings.name}" if self.embeddings else "")


def quantization_of(overrides: Iterable[tuple[str, Scalar]]) -> Quantization | None:
    """The quantization that overrides tell of, None where they tell of none.

    Raises:
        BenchError: there is no such one.
    """
    found = {k.removeprefix(QUANTIZE): v for k, v in overrides if k.startswith(QUANTIZE)}
    if not found:
        return None
    if "quantize" not in found:
        raise BenchError(f"{QUANTIZE}{min(found)} needs {QUANTIZE}quantize: int8 or int4")
    widths = {field: found.pop(field) for field in ("quantize", "embeddings") if field in found}
    return Quantization(*(_quantizer(field, width, found) for field, width in widths.items()))


def _quantizer(field: str, width: Scalar, rest: Mapping[str, Scalar]) -> Quantizer:
    """The quantizer of an override `field` and of those that say more of it."""
    try:
        return Quantizer.model_validate({"name": width, **rest}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = str(first["loc"][0]).replace("name", field)
        raise BenchError(f"{QUANTIZE}{wrong} {first['input']!r}: {first['msg']}") from None


class Cell(BaseModel):
    """One point of the benchmark: all that decides its scores and nothing else.

    Attributes:
        budget: name of one of the task's budgets.
        overrides: departures from the method's defaults (`lr`) or the budget (`budget.steps`),
            and what the finished weights are rounded to (`export.quantize`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    method: str
    pattern: Pattern
    sparsity: float = Field(ge=0, lt=1, allow_inf_nan=False)
    seed: int = Field(default=1, ge=0, lt=10**6)
    budget: str = "default"
    overrides: tuple[tuple[str, Scalar], ...] = ()

    @field_validator("task", "model", "method", "budget")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or ".." in value or len(value) > 64:
            raise ValueError(
                f"{value[:80]!r} is no name: letters, digits, . _ - and one /, up to 64"
            )
        return value

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, value: str) -> str:
        if not _PATTERN.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a pattern; dense, unstructured, 2:4, block:16x16, rows, heads, "
                "neurons"
            )
        return value

    @field_validator("sparsity")
    @classmethod
    def _four_digits(cls, value: float) -> float:
        if round(value, 4) != value:
            raise ValueError("sparsity has at most four decimals")
        return value

    @field_validator("overrides")
    @classmethod
    def _sorted(cls, value: tuple[tuple[str, Scalar], ...]) -> tuple[tuple[str, Scalar], ...]:
        quantization_of(value)  # refuses what there is not
        return tuple(sorted(value))

    @property
    def quantization(self) -> Quantization | None:
        """What the finished model is rounded to; None leaves it as it is."""
        return quantization_of(self.overrides)

    @property
    def key(self) -> str:
        """sha256 of the cell, hexadecimal: its identity in caches and records."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    def __str__(self) -> str:
        extra = "".join(f" {k}={v}" for k, v in self.overrides)
        budget = "" if self.budget == "default" else f" budget={self.budget}"
        return (
            f"{self.task} {self.model} {self.method} {self.pattern} "
            f"{self.sparsity:g} seed {self.seed}{budget}{extra}"
        )


def makes(declared: Iterable[Pattern], pattern: Pattern) -> bool:
    """Whether a method that declares `declared` makes `pattern`; `N:M`, `block:RxC` are open."""
    family = re.sub(r"^\d+:\d+$", "N:M", re.sub(r"^block:\d+x\d+", "block:RxC", pattern))
    return pattern in declared or family in declared


def canonical(value: Any) -> bytes:
    """`value` as JSON bytes that depend on its content alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
