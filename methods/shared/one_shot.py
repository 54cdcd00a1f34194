"""Bases of the methods that prune once, without training."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.api import Context, Field, Method, Published, parameters
from bench.weights.targets import Target
from methods.shared.blockwise import walk
from methods.shared.input_statistics import Statistic
from methods.shared.masks import groups_of, keep_masks, pruned_count
from methods.shared.reconstruct import Block, ReconstructParams, refit

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class TrainingFree(Method):
    """A method that prunes in `attach` and trains nothing."""

    published: ClassVar[Published | None] = Published(0.0, "model", "training-free")

    def finish(self, model: PreTrainedModel) -> None:
        """Does nothing: the zeros are in the weights already."""


class ByScores(TrainingFree):
    """A method that prunes every matrix once, by scores that need no inputs.

    A subclass says what the `scores` are.
    """

    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")
    published: ClassVar[Published | None] = None  # what all know, no paper prints

    @parameters
    class Params:
        """Where weights compete."""

        pool: Literal["layer", "row", "global"] = Field(
            default="layer", description="where weights compete; N:M always competes in its groups"
        )

    params: Params

    @abstractmethod
    def scores(self, target: Target, ctx: Context) -> Tensor:
        """Returns a score for each weight, (out, in) float32; the smallest go."""

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Zeroes the weights with the smallest scores."""
        scores = {target.name: self.scores(target, ctx) for target in ctx.targets}
        masks = keep_masks(scores, ctx.cell.pattern, ctx.cell.sparsity, self.params.pool)
        for target in ctx.targets:
            # masked_fill, not a product: 0 · inf is not 0, and −0.0 would not be +0.0.
            target.write(target.weight.masked_fill(~masks[target.name], 0.0))


class OneShot(TrainingFree):
    """A method that prunes every matrix once, from a statistic of its inputs.

    A subclass says which statistic and how a matrix is pruned; it may override `counts`. Blocks are
    pruned one by one (`methods/shared/blockwise.py`), and refitted if asked for
    (`methods/shared/reconstruct.py`). Its `Params` are `ReconstructParams`, and more.

    A matrix whose inputs no calibration pass shows is left dense and said: one that the model never
    calls, or an expert that no token reaches.

    Attributes:
        report: seconds in forward passes (`forward_s`), in pruning (`prune_s`) and, if asked for,
            in reconstruction (`reconstruct_s`), all blocks, and the number of matrices that were
            left dense, if there are any.
        n_m: (N, M) of the cell's pattern, or None.
        sparsity: the cell's.
        sequences: how many the budget calibrates with.
    """

    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")

    params: ReconstructParams

    @abstractmethod
    def statistic(self, width: int, device: torch.device) -> Statistic:
        """Returns an empty statistic of a matrix with `width` inputs."""

    @abstractmethod
    def pruned(self, weight: Tensor, statistic: Any, k: int) -> Tensor:
        """Returns the new weight, (out, in) float32, with `k` zeros, or N:M if `self.n_m` is set.

        Args:
            weight: (out, in) float32.
            statistic: what `statistic` made, filled with the matrix's inputs.
            k: zeros of an unstructured matrix.
        """

    def prepare(self, target: Target, statistic: Any) -> None:
        """Runs before a matrix is pruned, for methods that reorder its inputs."""

    def counts(self, model: PreTrainedModel, ctx: Context) -> dict[str, int]:
        """Returns how many weights each matrix loses: by default the cell's sparsity everywhere."""
        return {t.name: pruned_count(t.stored.numel(), ctx.cell.sparsity) for t in ctx.targets}

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Prunes all targets, block by block."""
        self.report = {"forward_s": 0.0, "prune_s": 0.0}
        self.n_m = ctx.cell.pattern.n_m
        self.sparsity, self.sequences = ctx.cell.sparsity, ctx.budget.calib
        if self.n_m:
            for target in ctx.targets:
                groups_of(target.shape[1], *self.n_m, target.name)
        if ctx.cell.sparsity == 0:
            return
        counts = self.counts(model, ctx)
        # At the cell's sparsity, where no count was chosen.
        share = {t.name: pruned_count(t.stored.numel(), ctx.cell.sparsity) for t in ctx.targets}
        left = share | counts

        def visit(inside: list[Target], found: dict[str, Statistic]) -> None:
            for target in inside:
                if target.name not in counts:
                    continue  # an expert that no token reached when counts were chosen
                # Popped: a statistic is freed as soon as its last matrix has been pruned.
                statistic = found.pop(target.name)
                self.prepare(target, statistic)
                weight = self.pruned(target.weight.float(), statistic, counts[target.name])
                target.write(weight)
                del left[target.name]

        def reconstruct(block: Block) -> None:
            block = block._replace(targets=[t for t in block.targets if t.name not in left])
            refit(block, self.params.reconstruct, self.params.reconstruct_lr)

        refits = reconstruct if self.params.reconstruct else None
        walk(model, ctx, self.statistic, visit, self.report, reconstruct=refits)
        if left:
            self.left_dense = left
            self.report["left_dense"] = len(left)
            names = ", ".join(sorted(left)[:3]) + (", …" if len(left) > 3 else "")
            log.warning("left dense, as no calibration pass calls them: %d (%s)", len(left), names)
