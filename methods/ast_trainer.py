"""AST, adaptive sparse trainer (AAAI'25, arXiv 2407.20584): 2:4 training that starts from dense.

    m: in each row, of every M consecutive inputs keep the N largest |W|; re-chosen every Δ updates
       (options of the code: Wanda's metric |W_ij|·‖X_j‖₂; `unstructured`, row by row)
    y = x (m⊙W)ᵀ + b  [+ (x Xᵀ) Qᵀ]          straight-through: ∂L/∂W := ∂L/∂(m⊙W), dense
    pruned weights decay by λ(t), which ramps up (methods/shared/annealed_adamw.py)
    L = α·KD₂(dense teacher) + (1 − α)·task

The bracket is SLoRB, a low-rank branch that starts as a fit of what was pruned. It cannot be
merged without filling the zeros, so it stays a branch of the exported module
(bench/weights/side_branch.py).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList

from bench.api import Context, Field, Method, Published, Setting, grid, parameters
from bench.weights import side_branch
from bench.weights.targets import Target, head_parameters, merge, normal_form, prunable
from methods.shared.annealed_adamw import AnnealedAdamW
from methods.shared.blockwise import walk
from methods.shared.counts import all_weights
from methods.shared.distill import mixed
from methods.shared.input_statistics import ColumnNorms
from methods.shared.masked_weight import MaskedWeight
from methods.shared.masks import keep_masks
from methods.shared.slorb import slorb

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# A quarter of the dense cell's rate. White noise moves AdamW by √((1 − β₁)/(1 + β₁)) = 0.23·lr and
# this optimizer by 0.99·lr, because it divides by the size of the momentum, not of the gradient.
NEW_HEAD_LR = 1.25e-5


class AST(Method):
    """Training under an adapting mask, N:M or row by row, annealed decay and a dense teacher."""

    name: ClassVar[str] = "ast"
    summary: ClassVar[str] = (
        "Retrains all weights under a mask that keeps adapting, with a dense teacher."
    )
    paper: ClassVar[str] = "arXiv 2407.20584, AAAI"
    year: ClassVar[int] = 2025
    version: ClassVar[int] = 3
    patterns: ClassVar[tuple[str, ...]] = ("N:M", "unstructured")
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(None, 6.25e-6, 2.5e-5, 5e-5), kd=(0.67, 0.33))
    state: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Published | None] = Published(1.0, "model", "all weights")

    @parameters
    class Params:
        """The paper's for GPT-2, as fractions of its 40,000 steps."""

        lr: float | None = Field(
            default=None,
            gt=0,
            description="learning rate; None: 2e-4 for a language model, 1.25e-5 where a new head "
            "is fine-tuned",
        )
        weight_decay: float = Field(default=0.1, ge=0, description="weight decay of matrices")
        warmup: float = Field(
            default=0.05,
            ge=0,
            lt=1,
            description="fraction of the steps in which lr rises",
        )
        tail: float = Field(
            default=0.05,
            ge=0,
            le=1,
            description="fraction of the steps at the end in which the learning rate goes from "
            "lr_min to 0",
        )
        lr_min: float = Field(
            default=0.1, ge=0, le=1, description="where the cosine ends, as a fraction of lr"
        )
        beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
        beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the second moment")
        kd: float = Field(
            default=0.67,
            ge=0,
            le=1,
            description="weight of distillation, the task's loss has the rest; 0 needs no teacher",
        )
        temperature: float = Field(default=2.0, gt=0, description="temperature of distillation")
        metric: Literal["magnitude", "wanda"] = Field(
            default="magnitude",
            description="what is kept: the largest weights, or the largest weights times the norm "
            "of their input in the dense model",
        )
        every: int = Field(
            default=10,
            ge=0,
            description="updates between two choices of the mask; 0 keeps the first",
        )
        decay: float = Field(
            default=1e-4, ge=0, description="final strength of the pruned weights' decay"
        )
        ramp: float = Field(
            default=0.25,
            ge=0,
            le=1,
            description="fraction of the steps over which that strength grows from 0",
        )
        slorb: Literal["none", "mean", "sum", "xavier"] = Field(
            default="none", description="how a low-rank branch starts; none: no branch"
        )
        slorb_k: int = Field(
            default=16, ge=1, description="inputs that share a column of the branch"
        )
        train_projection: bool = Field(
            default=True,
            description="whether the branch's input matrix trains beside its output matrix",
        )
        compat: Literal["paper", "released"] = Field(
            default="paper",
            description="released grows weights where the paper decays them, as the released code "
            "does",
        )

    params: Params

    @property
    def needs_dense(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the dense cell is the teacher."""
        return self.params.kd > 0

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights; SLoRB adds o·i/k and, where X is trained, i·i/k a matrix."""
        p = self.params
        if p.slorb == "none":
            return all_weights(model)
        shapes = [(o, i, i // p.slorb_k) for o, i in (t.shape for t in prunable(model))]
        return all_weights(model) + sum(r * (o + i * p.train_projection) for o, i, r in shapes)

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Masks every target, adds branches if asked, fetches the teacher."""
        p = self.params
        self.cell, self.steps = ctx.cell, ctx.budget.steps
        self.norms = input_norms(model, ctx) if p.metric == "wanda" else {}
        self.layers: list[tuple[Target, MaskedWeight, ParametrizationList]] = []
        self.optimizer_: AnnealedAdamW | None = None
        for target in ctx.targets:
            keep = self._choose(target, target.stored)
            if p.slorb != "none":
                pruned = target.weight.masked_fill(normal_form(keep, target.transposed), 0.0)
                X, Q = slorb(pruned, p.slorb_k, p.slorb, ctx.rng, target.name)
                side_branch.add(target.module, X, Q).down.requires_grad_(p.train_projection)
            mask = MaskedWeight(keep, target.stored.dtype)
            target.parametrize(mask)
            held = target.module.get_submodule("parametrizations.weight")
            self.layers.append((target, mask, cast(ParametrizationList, held)))
        self.teacher = ctx.teacher() if p.kd else None

    def _choose(self, target: Target, stored: Tensor) -> Tensor:
        """Returns the keep mask of a dense stored weight, in the stored layout."""
        scores = normal_form(stored.detach(), target.transposed).float().abs()
        if self.norms:
            scores = scores * self.norms[target.name]
        masks = keep_masks({target.name: scores}, self.cell.pattern, self.cell.sparsity, "row")
        return normal_form(masks[target.name], target.transposed)

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Sets λ(t); chooses the mask anew after update 0 and every Δ after it.

        A mask chosen after the last update would never have been trained with: the exported one
        is that of the last forward pass. All follows from `progress`, so training may resume.
        """
        p = self.params
        done = round(progress * self.steps)
        if p.every and 0 < done < self.steps and (done - 1) % p.every == 0:
            for target, mask, held in self.layers:
                mask.keep.copy_(self._choose(target, held.original))
        if self.optimizer_ is not None:
            self.optimizer_.decay = annealed(progress, p.decay, p.ramp)

    def loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], outputs: Any) -> Tensor:
        """Returns α·KD + (1 − α)·task."""
        return mixed(self.teacher, inputs, outputs, self.params.kd, self.params.temperature)

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns the default groups; settles the learning rate, so that the record tells it."""
        if self.params.lr is None:
            tuned = any(True for _ in head_parameters(model))
            self.params = replace(self.params, lr=NEW_HEAD_LR if tuned else 2e-4)
        return super().param_groups(model)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes an AdamW whose masked parameters decay where they are pruned."""
        p = self.params
        masks = {held.original: mask.keep for _, mask, held in self.layers}
        betas = (p.beta1, p.beta2)
        self.optimizer_ = AnnealedAdamW(groups, masks, betas=betas, compat=p.compat)
        return self.optimizer_

    def lr_factor(self, progress: float) -> float:
        """Rises linearly, follows a cosine to `lr_min` and falls linearly to 0."""
        p = self.params
        if progress < p.warmup:
            return progress / p.warmup
        if progress < 1.0 - p.tail:
            along = (progress - p.warmup) / (1.0 - p.tail - p.warmup)
            return p.lr_min + (1.0 - p.lr_min) * 0.5 * (1.0 + math.cos(math.pi * along))
        return p.lr_min * (1.0 - progress) / p.tail if p.tail else 0.0

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← m⊙W; a branch stays beside it."""
        merge(model)


def input_norms(model: PreTrainedModel, ctx: Context) -> dict[str, Tensor]:
    """Returns ‖X_j‖₂ of every target's inputs in the dense model, from one calibration pass.

    A matrix whose inputs no pass shows gets ones: its mask goes by magnitude.
    """
    norms = {t.name: torch.ones(t.shape[1], device=ctx.device) for t in ctx.targets}
    if ctx.device.type == "meta":
        return norms

    def visit(inside: list[Target], found: dict[str, ColumnNorms]) -> None:
        norms.update((target.name, found[target.name].norms) for target in inside)

    walk(model, ctx, ColumnNorms, visit, {"forward_s": 0.0, "prune_s": 0.0}, prunes=False)
    return norms


def annealed(progress: float, strength: float, ramp: float) -> float:
    """Returns λ(t) = λ_max·t/T₀ for t < T₀, then λ_max; t and T₀ as fractions of the steps."""
    return strength if progress >= ramp else strength * progress / ramp
