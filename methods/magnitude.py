"""One-shot magnitude pruning (methods/README.md, magnitude)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.api import Method
from methods.shared.masks import keep_masks


class Magnitude(Method):
    """Keeps the largest |W|; no training afterwards."""

    name: ClassVar[str] = "magnitude"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")

    @dataclass(frozen=True)
    class Params:
        """`pool`: where weights compete: `layer` (the reference's default), `row` or `global`."""

        pool: str = "layer"

    def scores(self, target, ctx):
        """|W|, (out, in), in float32 so that half precision makes no ties."""
        return target.weight.float().abs()

    def attach(self, model, ctx) -> None:
        """Zeroes the weights with the smallest scores."""
        scores = {target.name: self.scores(target, ctx) for target in ctx.targets}
        masks = keep_masks(scores, ctx.cell.pattern, ctx.cell.sparsity, self.params.pool)
        for target in ctx.targets:
            # masked_fill, not a product: 0 · inf is not 0, and −0.0 would not be +0.0.
            target.write(target.weight.masked_fill(~masks[target.name], 0.0))

    def finish(self, model) -> None:
        """The zeros are in the weights already."""
