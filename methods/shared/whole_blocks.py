"""The base of the methods that drop whole transformer blocks."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from bench.api import Context, Expected
from bench.weights import dead
from methods.shared.one_shot import TrainingFree
from methods.shared.passes import inference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class DropsBlocks(TrainingFree):
    """A method that drops ⌊L·s⌋ of L blocks, and at most all but one.

    A subclass drops them. A dropped block has zeros in place of its matrices and their biases, so
    it hands on what it is given; a slice takes it out (`bench.weights.dead`).
    """

    patterns: ClassVar[tuple[str, ...]] = ("blocks",)
    promises_sparsity: ClassVar[bool] = False  # blocks are few

    @abstractmethod
    def drop(self, model: PreTrainedModel, ctx: Context, n: int) -> None:
        """Silences `n` blocks; it runs in eval mode and without gradients."""

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Drops the blocks.

        Raises:
            BenchError: the model's blocks add to no residual stream.
        """
        n = dead.lost_blocks(model, ctx.cell.sparsity)
        self.report = {"dropped_blocks": n}
        if ctx.cell.sparsity and not n:
            log.warning("%s: %g of its blocks are none", type(model).__name__, ctx.cell.sparsity)
        if n:
            dead.check_silence(model)
            with inference(model):
                self.drop(model, ctx, n)

    def expected(self, ctx: Context) -> Expected:
        """Returns the share of blocks that goes."""
        return Expected(blocks=ctx.cell.sparsity)
