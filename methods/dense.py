"""Dense fine-tuning: what every other method is measured against (methods/README.md, dense)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.api import Method


class Dense(Method):
    """All weights trained on the task's loss, nothing pruned."""

    name: ClassVar[str] = "dense"
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True)
    class Params:
        """AdamW with linear warm-up and decay."""

        lr: float = 5e-5
        weight_decay: float = 0.01
        warmup: float = 0.1

    def finish(self, model) -> None:
        """Nothing to undo."""
