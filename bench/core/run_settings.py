"""How a cell is run where that does not decide its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.core.cell import Budget
from bench.core.errors import BenchError

FREE = (
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "fsdp",
    "fsdp_config",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
)
"""Options of transformers' TrainingArguments that a suite may set: where the work is done, not
what it comes to."""


@dataclass(frozen=True)
class RunSettings:
    """What a cell is run with.

    Attributes:
        processes: that train together, a device each.
        accumulate: pieces that a process's share of a batch goes through the model in.
        trainer: options of TrainingArguments, of those in `FREE`.
    """

    processes: int = 1
    accumulate: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> RunSettings:
        """From a suite's table `[trainer]`.

        Raises:
            BenchError: naming what it may hold.
        """
        options = {k: v for k, v in table.items() if k != "processes"}
        if unknown := [key for key in options if key not in FREE]:
            raise BenchError(
                f"[trainer] {', '.join(unknown)}: it takes processes, {', '.join(FREE)}; "
                "the budget and the method decide the rest"
            )
        processes = table.get("processes", 1)
        if type(processes) is not int or processes < 1:
            raise BenchError(f"[trainer] processes = {processes!r}: write a number from 1")
        if options.get("fsdp") and processes == 1:
            raise BenchError("[trainer] fsdp needs processes = 2 or more")
        return cls(processes=processes, trainer=options)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return bool(self.trainer.get("fsdp"))

    def as_env(self) -> dict[str, Any]:
        """What a record's `env` says of them."""
        found = {"processes": self.processes, "accumulate": self.accumulate}
        return {k: v for k, v in found.items() if v > 1} | {
            f"trainer.{k}": v if isinstance(v, (bool, int, float, str)) else json.dumps(v)
            for k, v in sorted(self.trainer.items())
        }

    def check(self, budget: Budget) -> None:
        """Holds a budget to being shareable.

        Raises:
            BenchError: there are fewer sequences than processes.
        """
        if budget.batch < self.processes:
            why = f"{self.processes} processes cannot share a batch of {budget.batch}"
            raise BenchError(f"[trainer] {why}")


DEFAULTS = RunSettings()
