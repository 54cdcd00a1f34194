"""LoRA, a trained low-rank update of frozen weights (arXiv 2106.09685).

    W' = W + (α/r)·BA,   A: (r, in) uniform, B: (out, r) zero

The update is added to the weight, not run beside it: a side branch with dropout on its input, as
in the paper's GPT-2 recipe, would be another module graph. There is no dropout here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api import BenchError, Context, Field, Method, Published, Setting, grid, parameters
from bench.weights.targets import freeze, merge, prunable
from methods.shared.low_rank import LowRankUpdate, updated_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoRA(Method):
    """Low-rank updates of query and value on a frozen model: few trained weights, none pruned."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = (
        "Trains a low-rank update of frozen query and value weights; prunes nothing."
    )
    paper: ClassVar[str] = "arXiv 2106.09685, ICLR"
    year: ClassVar[int] = 2022
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(
        lr=(5e-4, 1.25e-4, 2.5e-4, 1e-3), weight_decay=(0.1, 0.0)
    )
    shardable: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Published | None] = Published(
        0.8 / 125, "model", "0.8M of 125M, RoBERTa-base with head, r = 8, README"
    )

    @parameters
    class Params:
        """The released code's for RoBERTa-base."""

        lr: float = Field(default=5e-4, gt=0, description="learning rate of A, B and the head")
        weight_decay: float = Field(default=0.1, ge=0, description="weight decay of all matrices")
        warmup: float = Field(
            default=0.06,
            ge=0,
            lt=1,
            description="fraction of the steps in which lr rises",
        )
        rank: int = Field(default=8, ge=1, description="rank of the update")
        alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
        where: Literal["q", "k", "v", "qk", "qv", "kv", "qkv", "all"] = Field(
            default="qv", description="which matrices are updated; all: every one in the blocks"
        )

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns r·(o + i) summed over the updated logical matrices."""
        where, c = self.params.where, model.config
        if where == "all":
            shapes = [(t.shape[0] // t.parts, t.shape[1], t.parts) for t in prunable(model)]
            return self.params.rank * sum(parts * (o + i) for o, i, parts in shapes)
        heads, width = c.num_attention_heads, c.hidden_size
        keys = width // heads * (getattr(c, "num_key_value_heads", None) or heads)
        outputs = {"q": width, "k": keys, "v": keys}
        block: int = sum(outputs[role] + width for role in where)
        return int(c.num_hidden_layers) * self.params.rank * block

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes everything but the head and gives the chosen matrices their A and B."""
        where = self.params.where
        freeze(model)
        self.layers = []
        for target in ctx.targets:
            if rows := updated_rows(target, where):
                layer = LowRankUpdate(target, rows, self.params, ctx.rng).to(ctx.device)
                target.parametrize(layer)
                self.layers.append(layer)
        if not self.layers:
            raise BenchError(f"lora: no {where} matrices found in {type(model).__name__}")

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← W + (α/r)·BA."""
        merge(model)
