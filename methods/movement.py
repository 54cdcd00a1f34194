"""Movement pruning (arXiv 2005.07683) and block movement (arXiv 2109.04838).

    W̃ = M⊙W,  M = H(S);   ∂W = G⊙M,  ∂S = G⊙W     (G = ∂L/∂W̃; straight through H)

A weight that moves away from zero gains score. One score stands for one weight, for a block, or
for a whole FFN neuron: a row of every matrix into the layer and a column of the one out of it.
Blocks of R × C are C × R in the attention output, which reads what q, k and v make.

    hard   H keeps all but the ⌊n·s(t)⌋ lowest of a matrix
    soft   H = 1[σ(S) > τ(t)], loss + λ(t)·mean σ(S): how much is pruned comes out, λ decides

With `target=lagrangian` an augmented Lagrangian takes the place of λ, as in CoFi (arXiv
2204.00408). It steers the expected sparsity ŝ = Σ σ(logit τ − S/β) / n, and the ⌊n·ŝ⌋ weights with
the lowest scores of all matrices are pruned, no more than a ramp allows. In its first updates no
score tells anything yet: what is pruned then ends a short run at the majority class.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.api import Context, Expected, Field, Setting, parameters
from bench.weights.patterns import local
from bench.weights.targets import Target
from methods.shared.lagrangian import TargetParams, rising
from methods.shared.learned_scores import LearnedScores
from methods.shared.roles import feed_forward
from methods.shared.schedules import between_holds, cubic
from methods.shared.score_masks import BiasMask, Gate, Masked, keep_together, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REACH = 7.5
"""In units of β, how far a score can move: by its rate in every update. β is 1 with the default
rate and 300 updates."""

SOFT: Setting = {"mode": "soft", "target": "lagrangian", "initial_warmup": 2.5}
"""Soft movement that meets the sparsity; the rate of its scores hardly matters. Masks wait for a
quarter of the updates, which scores need in runs of a few hundred."""


class Movement(LearnedScores):
    """Movement pruning: weights and their scores train together; hard top-v or soft threshold."""

    name: ClassVar[str] = "movement"
    summary: ClassVar[str] = (
        "Trains a score beside each weight, block or neuron and prunes the lowest scores."
    )
    paper: ClassVar[str] = "arXiv 2005.07683, NeurIPS"
    year: ClassVar[int] = 2020
    version: ClassVar[int] = 3
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "block:RxC", "block:RxC+neurons")
    search: ClassVar[tuple[Setting, ...]] = (
        {},
        {"lr": 1e-4},
        SOFT,
        {**SOFT, "lr": 1e-4},
        {**SOFT, "lr": 2e-4},
        {**SOFT, "target_ramp": 0.7},
        {**SOFT, "square": 100.0},
        {**SOFT, "square": 100.0, "lr": 1e-4},
    )

    @parameters
    class Params(TargetParams):
        """The first paper's schedule and penalty, the second's treatment of biases and embeddings.

        The first paper trains SQuAD with lr 3e-5, score_lr 1e-2, freeze_embeddings, distill 0.5
        and no bias_mask. Here the learning rates are those of short runs, and nothing is distilled.
        """

        mode: Literal["hard", "soft"] = Field(
            default="hard",
            description="hard keeps exactly the sparsity's share of each matrix; soft has a "
            "threshold, and target says what decides the sparsity",
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
            description="final threshold on the sigmoid of the scores, soft only; with "
            "target=lagrangian the expected sparsity at the start",
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
            if self.target == "lagrangian" and self.mode != "soft":
                raise ValueError(
                    "target=lagrangian needs mode=soft; hard meets the sparsity anyway"
                )
            if self.target == "lagrangian" and not self.threshold:
                raise ValueError("target=lagrangian needs a threshold above 0, such as 0.1")
            return self

    params: Params

    @property
    def promises_sparsity(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the counted sparsity is the cell's: a constant λ cannot promise it."""
        return self.params.mode == "hard" or self.params.target == "lagrangian"

    @property
    def uniform(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether each matrix has the sparsity: with a multiplier all weights compete."""
        return self.params.mode == "hard"

    def expected(self, ctx: Context) -> Expected | None:
        """Returns what is known before training; how many neurons a multiplier prunes is not."""
        if self.params.mode == "soft" and ctx.cell.pattern.neurons:
            return None
        return super().expected(ctx)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Gives every target its scores, one gate a pool."""
        p = self.params
        self.ramp = between_holds(p)
        self.prepare(model, ctx)
        # The rates of all updates add up to half of score_lr's.
        self.unit = p.score_lr * ctx.budget.steps / 2 / REACH
        pattern = ctx.cell.pattern
        neurons: list[Gate] = []
        blocks: list[Gate] = []
        paired: set[str] = set()
        for ffn in feed_forward(ctx.targets) if pattern.neurons else []:
            extent = ffn.out.shape[0] + sum(target.shape[1] for target in ffn.ins)
            gate = self.gate(ffn.out.shape[1], extent, ctx)
            neurons.append(gate)
            for target in ffn.ins:
                self.mask(target, gate, (1, target.shape[1]))
            self.mask(ffn.out, gate, (ffn.out.shape[0], 1))
            paired |= {target.name for target in (*ffn.ins, ffn.out)}
        for target in ctx.targets:
            if target.name not in paired:
                block = local(pattern, target).block or (1, 1)
                units = units_of(target, block)
                blocks.append(self.gate(math.prod(units), math.prod(block), ctx))
                self.mask(target, blocks[-1], block)
        # The penalty is a mean over kinds of layers, and over the layers of each.
        self.kinds = [kind for kind in (blocks, neurons) if kind]
        self.gates = [*blocks, *neurons]

    def gate(self, units: int, extent: int, ctx: Context) -> Gate:
        """Makes a pool of `units` scores that stand for `extent` weights each."""
        soft = self.params.mode == "soft"
        floor = int(self.params.min_kept * units) + 1 if self.params.min_kept else 0
        if self.lagrangian is not None:  # what is promised leaves no more
            floor = min(floor, int((1.0 - self.sparsity) * units))
        return Gate(units, soft, floor, extent).to(ctx.device)

    def mask(self, target: Target, gate: Gate, unit: tuple[int, int]) -> None:
        """Parametrizes the target's weight, and its bias where that is masked."""
        layer = Masked(gate, unit, target.transposed)
        bias = getattr(target.module, "bias", None)
        target.parametrize(layer)
        if self.params.bias_mask and bias is not None:
            target.parametrize(BiasMask(layer), "bias")

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Sets s(t) or τ(t), and λ(t), which goes with τ; masks are chosen anew.

        With a multiplier ŝ of all weights go, and no more than an even ramp to the sparsity allows.
        """
        super().step(model, progress)
        if self.lagrangian is not None:
            with torch.no_grad():
                expected = self.expected_sparsity()
            start, end = self.ramp
            allowed = rising(max(progress - start, 0.0), end - start, self.sparsity)
            self.prune(allowed if expected.is_meta else min(float(expected), allowed))
            return
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

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Chooses the masks so that the lowest scores go, a share of all weights."""
        for gate, keep in zip(self.gates, keep_together(self.gates, share), strict=True):
            gate.set(share, keep)

    def expected_sparsity(self) -> Tensor:
        """Returns the share of the weights that is expected to go: Σ σ(logit τ − S/β) / n."""
        cut = math.log(self.params.threshold / (1.0 - self.params.threshold))
        gone = [g.extent * torch.sigmoid(cut - g.scores / self.unit).sum() for g in self.gates]
        return torch.stack(gone).sum() / sum(g.extent * g.scores.numel() for g in self.gates)

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> None:
        """Merges the masks; with a multiplier those of exactly the sparsity."""
        if self.lagrangian is not None:
            self.report["expected_sparsity"] = float(self.expected_sparsity())
            self.prune(self.sparsity)
        super().finish(model)
