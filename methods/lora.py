"""LoRA, a trained low-rank update of frozen weights (arXiv 2106.09685; METHODS.md §3.2).

    W' = W + (α/r)·BA,   A: (r, in) uniform, B: (out, r) zero

The update is added to the weight, not run beside it: a side branch with dropout on its input, as
in the paper's GPT-2 recipe, would be another module graph. There is no dropout here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Method, Pattern, Published
from bench.precision import without_autocast
from bench.targets import freeze, merge
from methods.roles import roles


class LoRA(Method):
    """Low-rank updates of query and value on a frozen model: few trained weights, none pruned."""

    name: ClassVar[str] = "lora"
    patterns: ClassVar[tuple[Pattern, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
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


def updated_rows(target, where: str) -> list[slice]:
    """The row slices of (out, in) that get an A and B of their own, in order."""
    parts = roles(target)
    if where == "all":
        return list(parts.values()) or [slice(0, target.shape[0])]
    return [rows for role, rows in parts.items() if role in where]


class LowRankUpdate(nn.Module):
    """Maps a frozen stored weight to W + (α/r)·BA; each updated slice has its own A and B."""

    def __init__(self, target, rows: list[slice], params, rng) -> None:
        super().__init__()
        self.transposed, self.rows = target.transposed, rows
        r, i = params.rank, target.shape[1]
        self.scale = params.alpha / r
        # Kaiming-uniform with a = √5 is U(−1/√in, 1/√in).
        self.A = nn.ParameterList()
        self.B = nn.ParameterList()
        for part in rows:
            uniform = torch.rand(r, i, generator=rng) * 2.0 - 1.0
            self.A.append(nn.Parameter(uniform / i**0.5))
            self.B.append(nn.Parameter(torch.zeros(part.stop - part.start, r)))

    def forward(self, stored: Tensor) -> Tensor:
        """The stored weight → its updated value in the same layout."""
        # The outputs lie along the columns of a Conv1D.
        out = 1 if self.transposed else 0
        pieces, done = [], 0
        with without_autocast(stored):
            for part, A, B in zip(self.rows, self.A, self.B, strict=True):
                pieces.append(stored.narrow(out, done, part.start - done))
                left, right = (A.t(), B.t()) if self.transposed else (B, A)
                old = stored.narrow(out, part.start, part.stop - part.start)
                pieces.append(torch.addmm(old, left, right, alpha=self.scale))
                done = part.stop
            pieces.append(stored.narrow(out, done, stored.shape[out] - done))
            pieces = [piece for piece in pieces if piece.shape[out]]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=out)
