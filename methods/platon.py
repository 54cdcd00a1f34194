"""PLATON, pruning by an upper confidence bound of importance (arXiv 2206.12562).

    I = |θ⊙∂L/∂θ|,  Ī_k its mean over the k-th window of ΔT updates
    Ĩ = β₁Ĩ + (1 − β₁)Ī_k,   Ũ = β₂Ũ + (1 − β₂)|Ī_k − Ĩ|,   score Ĩ⊙Ũ, one pool over all matrices

What ranks lowest is set to zero in place: every ΔT updates on a cubic ramp, after every update in
the final hold. No mask is in the forward, so a zero weight has a gradient and may grow back.

θ and ∂L/∂θ are those of the same update, as in the paper; the released code takes θ after it,
where a weight that has just been pruned is no longer zero, and averages a window of zeros in at the
start. The gradient is the one that the optimizer gets: of the whole batch, clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from bench.api import Context, Field, Published, Setting, grid, parameters
from methods.shared.counts import all_weights
from methods.shared.importance import ImportancePruning
from methods.shared.masks import keep_largest_global
from methods.shared.schedules import between_holds

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class PLATON(ImportancePruning):
    """All weights train; the lowest of sensitivity × its uncertainty are zeroed in one pool."""

    name: ClassVar[str] = "platon"
    summary: ClassVar[str] = (
        "Zeroes the weights with the lowest sensitivity × uncertainty; they may grow back."
    )
    paper: ClassVar[str] = "arXiv 2206.12562, ICML"
    year: ClassVar[int] = 2022
    version: ClassVar[int] = 2
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(5e-5, 2.5e-5, 1e-4, 2e-4), beta2=(0.95, 0.85))
    uniform: ClassVar[bool] = False
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @parameters
    class Params:
        """The paper's, with the dense cell's optimizer in place of Adamax."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate")
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of matrices")
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )
        initial_warmup: float = Field(
            default=1.0, ge=0, description="warm-ups before pruning starts"
        )
        final_warmup: float = Field(
            default=3.0, ge=0, description="warm-ups at the end with the final sparsity"
        )
        every: int = Field(default=10, ge=1, description="updates in a window")
        beta1: float = Field(
            default=0.85, ge=0, lt=1, description="decay of the smoothed sensitivity"
        )
        beta2: float = Field(
            default=0.95,
            ge=0,
            le=1,
            description="decay of its uncertainty; 1 leaves the uncertainty out",
        )

        @model_validator(mode="after")
        def _leaves_a_ramp(self) -> Self:
            between_holds(self)
            return self

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights."""
        return all_weights(model)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Prepares the ranking; the model stays, and biases and the pooler are not in the pool."""
        self.sparsity = ctx.cell.sparsity
        self.prepare(ctx, self.params.beta2)

    def choose(self, ramp: float) -> list[Tensor]:
        """Returns keep masks, as floats, when a share `ramp` of all that is to go goes."""
        scores = self.importance.scores()
        return keep_largest_global(scores, ramp * self.sparsity, scores[0].dtype)
