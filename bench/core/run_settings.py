"""Settings of a run that do not change a cell's scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
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
"""Options of transformers' TrainingArguments that a suite may set. They say where work is done and
do not change its result."""

TRACKERS = {
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Trackers by their name in transformers, and the packages of which each needs one."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run: how many processes and pieces share a batch, and trainer options.

    Attributes:
        processes: number of processes that train together, with a device each.
        accumulate: number of pieces that each process splits its share of a batch into.
        trainer: options of TrainingArguments, named in `FREE`.
        report_to: tracker that watches training, named in `TRACKERS`, or `none`. It only watches,
            so no record names it.
    """

    processes: int = 1
    accumulate: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)
    report_to: str = "none"

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> RunSettings:
        """Makes settings from a suite's table `[trainer]`.

        Raises:
            BenchError: an option is not allowed, or a value is not possible.
        """
        options = {k: v for k, v in table.items() if k != "processes"}
        if unknown := [key for key in options if key not in FREE]:
            raise BenchError(
                f"[trainer] {', '.join(unknown)}: it takes processes, {', '.join(FREE)}; "
                "the budget and the method set all other options"
            )
        processes = table.get("processes", 1)
        if type(processes) is not int or processes < 1:
            raise BenchError(f"[trainer] processes = {processes!r}: write a whole number from 1 on")
        if options.get("fsdp") and processes == 1:
            raise BenchError("[trainer] fsdp needs processes = 2 or more")
        return cls(processes=processes, trainer=options)

    def reporting_to(self, tracker: str | None) -> RunSettings:
        """Returns the same settings with a tracker, if one is named.

        Raises:
            BenchError: the tracker's package is not installed.
        """
        found = replace(self, report_to=tracker) if tracker else self
        found.check_tracker()
        return found

    def check_tracker(self) -> None:
        """Checks that the tracker's package is installed.

        Raises:
            BenchError: it is not; the line names it.
        """
        packages = TRACKERS.get(self.report_to, ())
        if packages and not any(map(find_spec, packages)):
            raise BenchError(
                f"--report-to {self.report_to} needs the package {packages[0]}: "
                f"pip install {packages[0]}"
            )

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return bool(self.trainer.get("fsdp"))

    def as_env(self) -> dict[str, Any]:
        """Returns the entries of a record's `env` that state these settings."""
        counts = {"processes": self.processes, "accumulate": self.accumulate}
        return {k: v for k, v in counts.items() if v > 1} | {
            f"trainer.{k}": v if isinstance(v, (bool, int, float, str)) else json.dumps(v)
            for k, v in sorted(self.trainer.items())
        }

    def check(self, budget: Budget) -> None:
        """Checks that a cell of the budget can run here.

        Raises:
            BenchError: a batch has fewer sequences than there are processes; or as
                `check_tracker`.
        """
        self.check_tracker()
        if budget.batch < self.processes:
            reason = f"{self.processes} processes cannot share a batch of {budget.batch}"
            raise BenchError(f"[trainer] {reason}")


DEFAULTS = RunSettings()
