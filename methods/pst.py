"""PST, parameter-efficient sparse training (IJCAI'22, arXiv 2205.11005).

    Ŵ = W + β·UV                               the weight moves by a low-rank update
    S = |Ŵ| + α₁·AB + α₂·(R·1ᵀ + 1·Cᵀ)         importance: magnitude + low rank + row + column
    M = 1[S not among the ⌊n·s(t)⌋ smallest of its matrix],   y = x (M⊙Ŵ)ᵀ + b

Only U, V, A, B, R, C (and the task's head) are trained; the mask is chosen anew every forward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from bench.api import Context, Field, Method, Published, Setting, grid, parameters
from bench.weights.precision import autocast_dtype, without_autocast
from bench.weights.targets import (
    Target,
    freeze,
    head_parameters,
    merge,
    normal_form,
    prunable,
)
from methods.shared.masked_update import MaskedUpdate
from methods.shared.schedules import cubic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PST(Method):
    """Low-rank weights and low-rank plus structured importance, sparsity on a cubic ramp.

    `warmup` and `clip` follow the paper's two recipes: with a new head neither warm-up nor another
    clipping than the benchmark's, for a language model a short warm-up and none.
    """

    name: ClassVar[str] = "pst"
    summary: ClassVar[str] = (
        "Trains low-rank updates of frozen weights and of their importance, and masks by both."
    )
    paper: ClassVar[str] = "arXiv 2205.11005, IJCAI"
    year: ClassVar[int] = 2022
    version: ClassVar[int] = 3
    trains: ClassVar[bool] = True
    search: ClassVar[tuple[Setting, ...]] = grid(lr=(1.5e-4, 7.5e-5, 3e-4, 6e-4), cool=(0.3, 0.5))
    needs_dense: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()
    # The abstract compares with "previous sparsity methods"; its script trains no head.
    published: ClassVar[Published | None] = Published(
        0.015, "weights+scores", "BERT-base, rank 8, abstract", head=False
    )

    @parameters
    class Params:
        """The paper's but for the learning rates."""

        lr: float = Field(default=1.5e-4, gt=0, description="learning rate of U, V, A, B, R and C")
        head_lr: float = Field(default=5e-4, gt=0, description="learning rate of the head")
        warmup: float | None = Field(
            default=None,
            ge=0,
            lt=1,
            description="fraction of the steps in which lr rises; None: 0 where a new head is "
            "fine-tuned, 0.02 for a language model",
        )
        clip: float | None = Field(
            default=None,
            ge=0,
            description="norm that gradients are clipped to, 0: not at all; None: 1 where a new "
            "head is fine-tuned, 0 for a language model",
        )
        eps: float = Field(default=1e-6, gt=0, description="ε of AdamW")
        rank: int = Field(default=8, ge=1, description="r₁, rank of UV")
        score_rank: int = Field(default=8, ge=1, description="r₂, rank of AB")
        alpha1: float = Field(default=1.0, ge=0, description="weight of AB in the importance")
        alpha2: float = Field(default=1.0, ge=0, description="weight of R and C in the importance")
        beta: float = Field(default=1.0, ge=0, description="weight of UV in the weight")
        hold: float = Field(
            default=0.1, ge=0, le=1, description="fraction of the steps at sparsity 0"
        )
        cool: float = Field(
            default=0.3, ge=0, le=1, description="fraction of the steps at the final sparsity"
        )
        split_qkv: bool = Field(
            default=True, description="whether GPT-2's fused q, k, v are three matrices"
        )
        detach_magnitude: bool = Field(
            default=False, description="whether the magnitude in the importance passes no gradient"
        )
        compat: Literal["paper", "reference"] = Field(
            default="paper",
            description="reference leaves the head untrained, as the released script does",
        )

        @model_validator(mode="after")
        def _leaves_a_ramp(self) -> Self:
            if self.hold + self.cool >= 1:
                raise ValueError(
                    f"hold {self.hold:g} and cool {self.cool:g}: their sum must be below 1"
                )
            return self

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns (r₁ + r₂ + 1)(o + i) summed over the logical matrices."""
        p, found = self.params, 0
        for target in prunable(model):
            (o, i), parts = target.shape, target.parts if p.split_qkv else 1
            found += parts * (p.rank + p.score_rank + 1) * (o // parts + i)
        return found

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes everything but the head and parametrizes every target."""
        p = self.params = settled(self.params, model)
        freeze(model, head=p.compat == "paper")
        self.sparsity = ctx.cell.sparsity
        self.layers: list[LowRankImportance] = []
        for target in ctx.targets:
            layer = LowRankImportance(target, p, ctx.rng).to(ctx.device)
            target.parametrize(layer)
            self.layers.append(layer)

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Sets s(t); the forward of update t uses the value after update t−1."""
        p = self.params
        now = cubic(progress, p.hold, 1.0 - p.cool, 0.0, self.sparsity)
        for layer in self.layers:
            layer.sparsity = now

    @property
    def max_grad_norm(self) -> float:  # type: ignore[override]  # the base allows a property
        """The clipping that `clip` settles."""
        clip = self.params.clip
        return 1.0 if clip is None else clip

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns groups of U, V, A, B, R, C, and of the head; no weight decay."""
        head = [p for _, p in head_parameters(model) if p.requires_grad]
        ids = {id(p) for p in head}
        body = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
        return self.groups(model, (body, self.params.lr, 0.0), (head, self.params.head_lr, 0.0))

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← M⊙Ŵ at the final sparsity; U, V, A, B, R, C are dropped."""
        merge(model)


def settled(params: PST.Params, model: PreTrainedModel) -> PST.Params:
    """Returns the parameters with those filled in that a new head decides; the record tells them.

    The paper's language models have 500 warm-up updates of 26,289 and no clipping.
    """
    tuned = any(True for _ in head_parameters(model))
    warmup, clip = (0.0, 1.0) if tuned else (0.02, 0.0)
    return replace(
        params,
        warmup=warmup if params.warmup is None else params.warmup,
        clip=clip if params.clip is None else params.clip,
    )


class LowRankImportance(nn.Module):
    """Maps a frozen stored weight to M⊙Ŵ; holds the trained tensors of one target.

    Shapes, with p logical matrices of (o, i) stacked along the outputs: U (p, o, r₁),
    V (p, r₁, i), A (p, o, r₂), B (p, r₂, i), R (p, o, 1), C (p, 1, i).
    """

    wide_inputs = ("V",)  # U reads r₁ numbers; A, B, R and C make scores

    def __init__(self, target: Target, params: PST.Params, rng: torch.Generator) -> None:
        super().__init__()
        self.transposed = target.transposed
        rows, i = target.shape
        p = target.parts if params.split_qkv else 1
        o, r1, r2 = rows // p, params.rank, params.score_rank
        self.view = (p, o, i)
        # Unit variance, not LoRA's scaled init: as the paper's code has it.
        self.U = nn.Parameter(torch.randn(p, o, r1, generator=rng))
        self.V = nn.Parameter(torch.zeros(p, r1, i))
        self.A = nn.Parameter(torch.randn(p, o, r2, generator=rng))
        self.B = nn.Parameter(torch.zeros(p, r2, i))
        self.R = nn.Parameter(torch.zeros(p, o, 1))
        self.C = nn.Parameter(torch.zeros(p, 1, i))
        self.scales = (params.beta, params.alpha1, params.alpha2)
        self.detach = params.detach_magnitude
        self.sparsity = 0.0

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to its masked, updated value in the same layout.

        Under autocast it is in autocast's type, which the product would cast it to anyway.
        """
        dtype = autocast_dtype(stored)
        # Scores decide who survives: float32 whatever autocast says.
        with without_autocast(stored):
            weight = normal_form(stored, self.transposed).view(self.view)
            factors = (self.U, self.V, self.A, self.B, self.R, self.C)
            masked: Tensor = MaskedUpdate.apply(
                weight.float(),
                *factors,
                self.scales,
                self.sparsity,
                self.detach,
                dtype or stored.dtype,
            )
            masked = masked.view(-1, self.view[2])
        return masked.t() if self.transposed else masked
