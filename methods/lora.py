"""LoRA, a trained low-rank update of frozen weights (arXiv 2106.09685).

    W' = W + (α/r)·BA,   A: (r, in) uniform, B: (out, r) zero

The update is added to the weight, not run beside it: a side branch with dropout on its input, as
in the paper's GPT-2 recipe, would be another module graph. There is no dropout here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.api import BenchError, Method, Published
from bench.weights.targets import freeze, merge
from methods.shared.low_rank import LowRankUpdate, updated_rows


class LoRA(Method):
    """Low-rank updates of query and value on a frozen model: few trained weights, none pruned."""

    name: ClassVar[str] = "lora"
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Published | None] = Published(
        0.8 / 125, "model", "0.8M of 125M, RoBERTa-base with head, r = 8, README"
    )

    @dataclass(frozen=True)
    class Params:
        """RoBERTa-base's defaults in the released code.

        Attributes:
            rank: r.
            alpha: α; the update is scaled by α/r.
            where: which of `q`, `k`, `v` are updated, or `all` linear weights of the blocks.
        """

        lr: float = 5e-4
        weight_decay: float = 0.1
        warmup: float = 0.06
        rank: int = 8
        alpha: float = 16.0
        where: str = "qv"

    def attach(self, model, ctx) -> None:
        """Freezes everything but the head and gives the chosen matrices their A and B."""
        where = self.params.where
        if where != "all" and not (where and set(where) <= set("qkv")):
            raise BenchError(f"lora: where is made of q, k and v, or 'all', not {where!r}")
        freeze(model)
        self.layers = []
        for target in ctx.targets:
            if rows := updated_rows(target, where):
                layer = LowRankUpdate(target, rows, self.params, ctx.rng).to(ctx.device)
                target.parametrize(layer)
                self.layers.append(layer)
        if not self.layers:
            raise BenchError(f"lora: no {where} matrices found in {type(model).__name__}")

    def finish(self, model) -> None:
        """W ← W + (α/r)·BA."""
        merge(model)
