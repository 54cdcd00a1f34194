"""Movement pruning (arXiv 2005.07683) and block movement (arXiv 2109.04838).

    W̃ = M⊙W,  M = H(S);   ∂W = G⊙M,  ∂S = G⊙W     (G = ∂L/∂W̃; straight through H)

A weight that moves away from zero gains score. One score stands for one weight, for a block, or
for a whole FFN neuron: a row of every matrix into the layer and a column of the one out of it.
Blocks of R × C are C × R in the attention output, which reads what q, k and v make.

    hard   H keeps all but the ⌊n·s(t)⌋ lowest of a matrix
    soft   H = 1[σ(S) > τ(t)], loss + λ(t)·mean σ(S): how much is pruned comes out, λ decides
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import Context, Field, Setting, grid, parameters
from bench.weights.patterns import local
from bench.weights.targets import Target
from methods.shared.learned_scores import LearnedScores
from methods.shared.roles import feed_forward
from methods.shared.schedules import between_holds, cubic
from methods.shared.score_masks import BiasMask, Gate, Masked, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Movement(LearnedScores):
    """Movement pruning: weights and their scores train together; hard top-v or soft threshold."""

    name: ClassVar[str] = "movement"
    summary: ClassVar[str] = (
        "Trains a score beside each weight, block or neuron and prunes the lowest scores."
    )
    paper: ClassVar[str] = "arXiv 2005.07683, NeurIPS"
    year: ClassVar[int] = 2020
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "block:RxC", "block:RxC+neurons")
    search: ClassVar[tuple[Setting, ...]] = grid(score_lr=(5e-2, 1e-2, 2e-2, 1e-1), lr=(5e-5, 1e-4))

    @parameters
    class Params:
        """The first paper's schedule and penalty, the second's treatment of biases and embeddings.

        The first paper trains SQuAD with lr 3e-5, score_lr 1e-2, freeze_embeddings, distill 0.5
        and no bias_mask. Here the learning rates are those of short runs, and nothing is distilled.
        """

        mode: Literal["hard", "soft"] = Field(
            default="hard",
            description="hard keeps exactly the sparsity's share; soft has a threshold, and the "
            "sparsity is a label",
        )
        lr: float = Field(default=5e-5, gt=0, description="learning rate of the weights")
        score_lr: float = Field(default=5e-2, gt=0, description="learning rate of the scores")
        weight_decay: float = Field(default=0.01, ge=0, description="weight decay of the weights")
        warmup: float = Field(
            default=0.1, ge=0, lt=1, description="fraction of the steps in which lr rises"
        )
        initial_warmup: float = Field(
            default=1.0, ge=0, description="warm-ups before pruning starts"
        )
        final_warmup: float = Field(
            default=2.0, ge=0, description="warm-ups at the end with the final sparsity"
        )
        threshold: float = Field(
            default=0.1,
            ge=0,
            lt=1,
            description="final threshold on the sigmoid of the scores, soft only",
        )
        penalty: float = Field(
            default=400.0, ge=0, description="final weight of the penalty on the scores, soft only"
        )
        min_kept: float = Field(
            default=0.005,
            ge=0,
            le=1,
            description="fraction of each matrix's best scores that survives any threshold, soft "
            "only",
        )
        bias_mask: bool = Field(
            default=True, description="whether an output without weights loses its bias"
        )
        freeze_embeddings: bool = Field(
            default=False, description="whether embeddings and their norm are frozen"
        )
        distill: float = Field(
            default=0.0,
            ge=0,
            le=1,
            description="weight of distillation, the task's loss has the rest; 0: no dense cell",
        )
        temperature: float = Field(default=2.0, gt=0, description="temperature of distillation")

        @model_validator(mode="after")
        def _leaves_a_ramp(self) -> Self:
            between_holds(self)
            return self

    params: Params

    @property
    def promises_sparsity(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the counted sparsity is the cell's: a threshold cannot promise it."""
        return self.params.mode == "hard"

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Gives every target its scores, one gate a pool."""
        p = self.params
        self.ramp = between_holds(p)
        self.sparsity, self.strength = ctx.cell.sparsity, 0.0
        self.prepare(model, ctx)
        pattern = ctx.cell.pattern
        neurons: list[Gate] = []
        blocks: list[Gate] = []
        paired: set[str] = set()
        for ffn in feed_forward(ctx.targets) if pattern.neurons else []:
            gate = self.gate(ffn.out.shape[1], ctx)
            neurons.append(gate)
            for target in ffn.ins:
                self.mask(target, gate, (1, target.shape[1]))
            self.mask(ffn.out, gate, (ffn.out.shape[0], 1))
            paired |= {target.name for target in (*ffn.ins, ffn.out)}
        for target in ctx.targets:
            if target.name not in paired:
                block = local(pattern, target).block or (1, 1)
                units = units_of(target, block)
                blocks.append(self.gate(math.prod(units), ctx))
                self.mask(target, blocks[-1], block)
        # The penalty is a mean over kinds of layers, and over the layers of each.
        self.kinds = [kind for kind in (blocks, neurons) if kind]

    def gate(self, units: int, ctx: Context) -> Gate:
        """Makes a pool of `units` scores."""
        soft = self.params.mode == "soft"
        floor = int(self.params.min_kept * units) + 1 if self.params.min_kept else 0
        return Gate(units, soft, floor).to(ctx.device)

    def mask(self, target: Target, gate: Gate, unit: tuple[int, int]) -> None:
        """Parametrizes the target's weight, and its bias where that is masked."""
        layer = Masked(gate, unit, target.transposed)
        bias = getattr(target.module, "bias", None)
        target.parametrize(layer)
        if self.params.bias_mask and bias is not None:
            target.parametrize(BiasMask(layer), "bias")

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Sets s(t) or τ(t), and λ(t), which goes with τ; masks are chosen anew."""
        ramp = cubic(progress, *self.ramp, 0.0, 1.0)
        soft = self.params.mode == "soft"
        self.strength = ramp * self.params.penalty if soft else 0.0
        for kind in self.kinds:
            for gate in kind:
                gate.set(ramp * (self.params.threshold if soft else self.sparsity))

    def penalty(self) -> Tensor:
        """Returns the mean over kinds of layers of the mean over layers of mean σ(S)."""
        means = [torch.stack([g.scores.sigmoid().mean() for g in kind]) for kind in self.kinds]
        return torch.stack([mean.mean() for mean in means]).mean()
