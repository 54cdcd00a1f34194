"""ShortGPT: the blocks that change their input least are dropped (arXiv 2403.03853).

BI_l = 1 − mean over tokens of cos(x_l, y_l),   x_l, y_l: what block l is given and puts out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from bench.api import Context, Field, Setting, grid, parameters
from bench.weights import dead
from bench.weights.blocks import blocks, given, put_out
from methods.shared.passes import Batch, run
from methods.shared.sequences import sequences
from methods.shared.whole_blocks import DropsBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ShortGPT(DropsBlocks):
    """Drops the blocks of the lowest influence."""

    name: ClassVar[str] = "shortgpt"
    summary: ClassVar[str] = "Drops the blocks whose output is most like their input."
    paper: ClassVar[str] = "arXiv 2403.03853, Findings of ACL"
    year: ClassVar[int] = 2025
    search: ClassVar[tuple[Setting, ...]] = grid(anew=(False, True))

    @parameters
    class Params:
        """When the influence is measured."""

        anew: bool = Field(
            default=False,
            description="whether the influence is measured again after each dropped block",
        )

    params: Params

    def drop(self, model: PreTrainedModel, ctx: Context, n: int) -> None:
        """Silences the `n` blocks of the lowest influence; the first among equals."""
        batches = sequences(model, ctx)
        gone: list[int] = []
        while len(gone) < n:
            order = influences(model, batches).sort(stable=True).indices.tolist()
            left = [number for number in order if number not in gone]
            gone += left[: 1 if self.params.anew else n]
            dead.silence(model, gone)


def influences(model: PreTrainedModel, batches: Sequence[Batch]) -> torch.Tensor:
    """Returns the influence of every block, (L,) float64."""
    inside = blocks(model)
    sums = torch.zeros(len(inside), dtype=torch.float64, device=model.device)
    tokens = torch.zeros_like(sums)

    def look(
        number: int, _: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        x, y = given(args, kwargs).float(), put_out(output).float()
        alike = cosine_similarity(x, y, dim=-1)
        sums[number] += (1.0 - alike).double().sum()
        tokens[number] += alike.numel()

    handles = [
        block.register_forward_hook(partial(look, number), with_kwargs=True)
        for number, block in enumerate(inside)
    ]
    try:
        for batch in batches:
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return sums / tokens.clamp(min=1.0)
