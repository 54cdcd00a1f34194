"""PST, parameter-efficient sparse training (IJCAI'22, arXiv 2205.11005).

    Ŵ = W + β·UV                               the weight moves by a low-rank update
    S = |Ŵ| + α₁·AB + α₂·(R·1ᵀ + 1·Cᵀ)         importance: magnitude + low rank + row + column
    M = 1[S not among the ⌊n·s(t)⌋ smallest of its matrix],   y = x (M⊙Ŵ)ᵀ + b

Only U, V, A, B, R, C (and the task's head) are trained; the mask is chosen anew every forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from bench.api import Context, Field, Method, Published, parameters
from bench.weights.precision import autocast_dtype, without_autocast
from bench.weights.targets import (
    Target,
    freeze,
    head_parameters,
    merge,
    normal_form,
    prunable,
)
from methods.shared.masks import keep_largest, pruned_count
from methods.shared.schedules import cubic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PST(Method):
    """Low-rank weights and low-rank plus structured importance, sparsity on a cubic ramp."""

    name: ClassVar[str] = "pst"
    summary: ClassVar[str] = (
        "Trains low-rank updates of frozen weights and of their importance, and masks by both."
    )
    paper: ClassVar[str] = "arXiv 2205.11005, IJCAI"
    year: ClassVar[int] = 2022
    version: ClassVar[int] = 2
    trains: ClassVar[bool] = True
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
        rank: int = Field(default=8, ge=1, description="rank of UV and of AB")
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
        """Returns (2r + 1)(o + i) summed over the logical matrices."""
        found = 0
        for target in prunable(model):
            (o, i), parts = target.shape, target.parts if self.params.split_qkv else 1
            found += parts * (2 * self.params.rank + 1) * (o // parts + i)
        return found

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes everything but the head and parametrizes every target."""
        p = self.params
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

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns one group for U, V, A, B, R, C, one for the head; no weight decay."""
        head = [p for _, p in head_parameters(model) if p.requires_grad]
        ids = {id(p) for p in head}
        body = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
        groups = [(body, self.params.lr), (head, self.params.head_lr)]
        return [{"params": ps, "lr": self.scaled(lr, model)} for ps, lr in groups if ps]

    def lr_factor(self, progress: float) -> float:
        """Decays linearly, without warm-up."""
        return 1.0 - progress

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← M⊙Ŵ at the final sparsity; U, V, A, B, R, C are dropped."""
        merge(model)


class LowRankImportance(nn.Module):
    """Maps a frozen stored weight to M⊙Ŵ; holds the trained tensors of one target.

    Shapes, with p logical matrices of (o, i) stacked along the outputs: U (p, o, r),
    V (p, r, i), A (p, o, r), B (p, r, i), R (p, o, 1), C (p, 1, i).
    """

    def __init__(self, target: Target, params: PST.Params, rng: torch.Generator) -> None:
        super().__init__()
        self.transposed = target.transposed
        rows, i = target.shape
        p = target.parts if params.split_qkv else 1
        o, r = rows // p, params.rank
        self.view = (p, o, i)
        # Unit variance, not LoRA's scaled init: as the paper's code has it.
        self.U = nn.Parameter(torch.randn(p, o, r, generator=rng))
        self.V = nn.Parameter(torch.zeros(p, r, i))
        self.A = nn.Parameter(torch.randn(p, o, r, generator=rng))
        self.B = nn.Parameter(torch.zeros(p, r, i))
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
            masked: Tensor = _MaskedUpdate.apply(
                weight.float(),
                *factors,
                self.scales,
                self.sparsity,
                self.detach,
                dtype or stored.dtype,
            )
            masked = masked.view(-1, self.view[2])
        return masked.t() if self.transposed else masked


class _MaskedUpdate(torch.autograd.Function):
    """(W, U, V, A, B, R, C) → M⊙Ŵ with the straight-through gradient through M.

    With G = ∂L/∂(M⊙Ŵ) and D = G⊙Ŵ: ∂Ŵ = G⊙(M + |Ŵ|), or G⊙M when |Ŵ| is detached;
    ∂U = β·∂Ŵ·Vᵀ, ∂V = β·Uᵀ·∂Ŵ, ∂A = α₁·D·Bᵀ, ∂B = α₁·Aᵀ·D, ∂R = α₂·rowsum D,
    ∂C = α₂·colsum D. Written by hand because it is memory traffic that costs here: R and C ride
    along as two more ranks, [α₁A, α₂R, 1]·[B; 1; α₂C], so that one product serves all of S and
    one each all of their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        U: Tensor,
        V: Tensor,
        A: Tensor,
        B: Tensor,
        R: Tensor,
        C: Tensor,
        scales: tuple[float, float, float],
        sparsity: float,
        detach: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        beta, alpha1, alpha2 = scales
        left = torch.cat([alpha1 * A, alpha2 * R, torch.ones_like(R)], dim=2)
        right = torch.cat([B, torch.ones_like(C), alpha2 * C], dim=1)
        updated = torch.baddbmm(weight, U, V, alpha=beta)
        low = updated.to(dtype)
        k = pruned_count(updated[0].numel(), sparsity)
        if k == 0:
            keep, masked = None, low.clone()
        else:
            scores = updated.abs().baddbmm_(left, right)
            keeps = [keep_largest(part, k, scores.dtype) for part in scores]
            keep = (keeps[0][None] if len(keeps) == 1 else torch.stack(keeps)).to(dtype)
            masked = low * keep
        # What G is multiplied by in ∂Ŵ; None stands for all ones.
        through = keep if detach else low.abs().add_(1.0 if keep is None else keep)
        ctx.save_for_backward(low, through, U, V, left, right)
        ctx.scales = scales
        return masked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, through, *factors = ctx.saved_tensors
        # In the type of the forward product: what autocast does to any weight's gradient.
        U, V, left, right = (factor.to(low.dtype) for factor in factors)
        wide = factors[0].dtype
        beta, alpha1, alpha2 = ctx.scales
        D = grad * low
        d_updated = grad if through is None else grad * through
        # (V·Gᵀ)ᵀ, not G·Vᵀ: a few rows times a wide matrix is what BLAS does well.
        dU = torch.bmm(V, d_updated.mT).mT.to(wide) * beta
        dV = torch.bmm(U.mT, d_updated).to(wide) * beta
        d_left = torch.bmm(right, D.mT).mT.to(wide)
        d_right = torch.bmm(left.mT, D).to(wide)
        r = U.shape[2]
        dA, dR = alpha1 * d_left[:, :, :r], alpha2 * d_left[:, :, r : r + 1]
        # left already holds α₁A; its last column is the ones that sum D's columns.
        dB, dC = d_right[:, :r], alpha2 * d_right[:, r + 1 :]
        return None, dU, dV, dA, dB, dR, dC, None, None, None, None
