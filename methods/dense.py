"""Dense fine-tuning: what every other method is measured against (methods/README.md, dense)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.api import Field, Method, parameters
from methods.shared.counts import all_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dense(Method):
    """All weights trained on the task's loss, nothing pruned."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "Trains all weights and prunes nothing."
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("dense",)
    trains: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()

    @parameters
    class Params:
        """AdamW with linear warm-up and decay."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate")
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of matrices")
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights."""
        return all_weights(model)

    def finish(self, model: PreTrainedModel) -> None:
        """Does nothing: there is nothing to undo."""
