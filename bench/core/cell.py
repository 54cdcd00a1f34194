"""A cell of the benchmark and what it is made of: pattern, budget, overrides, quantization.

Nothing here imports torch, so that the command line stays fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.core.errors import BenchError
from bench.core.overrides import Quantization, Scalar, quantization_of
from bench.core.pattern import PATTERN, Pattern

REFERENCE = "dense"
"""The method that recovery is measured against and that one-shot methods start from."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


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
        if not PATTERN.fullmatch(value):
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


def canonical(value: Any) -> bytes:
    """`value` as JSON bytes that depend on its content alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
