"""A cell of the benchmark and its parts: pattern, budget, overrides, quantization.

Nothing here imports torch, so that the command line stays fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from bench.core.overrides import Overrides, OverridesField, Quantization
from bench.core.parameters import parameters
from bench.core.pattern import DENSE, PatternField

REFERENCE = "dense"
"""The method that recovery is measured against and that one-shot methods start from."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


@parameters
class Budget:
    """What every method may spend on a task; the harness enforces it."""

    steps: int = Field(ge=1, description="optimizer updates")
    batch: int = Field(ge=1, description="sequences an update")
    length: int = Field(ge=1, description="tokens that a sequence is cut to")
    calib: int = Field(default=128, ge=1, description="calibration sequences of a one-shot method")
    timeout_s: float = Field(
        default=3600.0, gt=0, description="seconds after which a cell is stopped"
    )
    beams: int | None = Field(default=None, ge=1, description="beam width for texts; 1 is greedy")
    items: int | None = Field(default=None, ge=1, description="scored items at most; None for all")
    smoothing: float | None = Field(
        default=None, gt=0, lt=1, description="label smoothing of a language model's training loss"
    )


def _budget_of(value: Any) -> Any:
    """Makes a budget from a JSON object, which strict types do not take for one."""
    return Budget(**value) if isinstance(value, dict) else value


BudgetField = Annotated[Budget, BeforeValidator(_budget_of)]
"""A budget in a pydantic model."""


class Cell(BaseModel):
    """One point of the benchmark. It holds all that decides the scores, and nothing else.

    Attributes:
        pattern: where zeros may lie.
        sparsity: fraction of the prunable weights that is pruned, to four decimals.
        budget: name of one of the task's budgets.
        overrides: values that replace defaults of the method and the budget, and the format that
            the finished weights are rounded to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    method: str
    pattern: PatternField
    sparsity: float = Field(ge=0, lt=1, allow_inf_nan=False)
    seed: int = Field(default=1, ge=0, lt=10**6)
    budget: str = "default"
    overrides: OverridesField = Overrides()

    @field_validator("task", "model", "method", "budget")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or ".." in value or len(value) > 64:
            raise ValueError(
                f"{value[:80]!r} is not a name: use up to 64 letters, digits, . _ - and one /"
            )
        return value

    @field_validator("sparsity")
    @classmethod
    def _four_digits(cls, value: float) -> float:
        if round(value, 4) != value:
            raise ValueError("sparsity has at most four decimals")
        return value

    @property
    def quantization(self) -> Quantization | None:
        """The format that the finished model is rounded to; None does not round it."""
        return self.overrides.quantization

    @property
    def key(self) -> str:
        """Hexadecimal sha256 of the cell, which identifies it in caches and records."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    @property
    def dense(self) -> Cell:
        """The dense cell of the same task, model, seed and budget."""
        return self.model_copy(
            update={
                "method": REFERENCE,
                "pattern": DENSE,
                "sparsity": 0.0,
                "overrides": self.overrides.of_budget,
            }
        )

    def __str__(self) -> str:
        budget = "" if self.budget == "default" else f" budget={self.budget}"
        return (
            f"{self.task} {self.model} {self.method} {self.pattern} "
            f"{self.sparsity:g} seed {self.seed}{budget} {self.overrides}"
        ).rstrip()


def canonical(value: Any) -> bytes:
    """Returns `value` as JSON bytes that depend only on its content, not on the order of keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
