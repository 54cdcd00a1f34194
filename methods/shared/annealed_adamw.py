"""AST's AdamW: pruned weights decay outside the first moment (arXiv 2407.20584).

For a weight p with keep mask m, gradient g and decay strength λ:

    p ← p(1 − lr·wd)
    u ← β₁u + (1 − β₁)g          first moment, of the gradient alone
    z ← u + λ·(1 − m)⊙p          decay of the pruned weights
    v ← β₂v + (1 − β₂)z²         second moment of z, so of the momentum and not of g
    p ← p − lr/(1 − β₁ᵗ) · z / (√v / √(1 − β₂ᵗ) + ε)

Parameters without a mask get ordinary AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AnnealedAdamW(torch.optim.Optimizer):
    """AdamW with λ-decay of pruned weights; `decay` is λ, set before every step.

    Args:
        params: as for every optimizer.
        masks: parameter → keep mask (1 = keep) of its shape and dtype; its owner changes it in
            place.
        lr: learning rate.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: wd of all parameters of a group, masked or not.
        compat: `released` takes the sign of the released code, whose integer mask turns (1 − m)
            into −(1 + m): all weights grow, kept ones twice as fast. For comparison.
    """

    def __init__(
        self,
        params: Iterable[Any],
        masks: Mapping[Tensor, Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        compat: str = "paper",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.masks = dict(masks)
        self.released = compat == "released"
        self.decay = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            plain = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p].update(
                        updates=0,
                        step=torch.zeros((), device=p.device),  # the fused kernel's own count
                        exp_avg=torch.zeros_like(p, memory_format=torch.preserve_format),
                        exp_avg_sq=torch.zeros_like(p, memory_format=torch.preserve_format),
                    )
                if p in self.masks:
                    self._masked(p, self.masks[p], group)
                else:
                    plain.append(p)
            states = [self.state[p] for p in plain]
            moments = [s["exp_avg"] for s in states]
            _fused(group, plain, [p.grad for p in plain], moments, states)
        return loss

    def _masked(self, p: Tensor, keep: Tensor, group: dict[str, Any]) -> None:
        """Updates a masked parameter as the head of this file says, in four passes over memory.

        AdamW with β₁ = 0 and z for a gradient is the last three lines: it has no first moment, so
        z can stand in its place too. Its bias correction is then 1, so it is told lr/(1 − β₁ᵗ),
        and wd·(1 − β₁ᵗ) to make up for that.
        """
        beta1, state = group["betas"][0], self.state[p]
        state["updates"] += 1
        z = state["exp_avg"].lerp_(p.grad, 1.0 - beta1)
        if self.decay:
            shrunk = self.decay * (1.0 - group["lr"] * group["weight_decay"])
            # (1 − m)⊙p, or −(1 + m)⊙p.
            pull = torch.addcmul(-p if self.released else p, p, keep, value=-1.0)
            z = torch.add(z, pull, alpha=shrunk, out=pull)
        correction = 1.0 - beta1 ** state["updates"]
        told = {
            "lr": group["lr"] / correction,
            "weight_decay": group["weight_decay"] * correction,
            "betas": (0.0, group["betas"][1]),
            "eps": group["eps"],
        }
        _fused(told, [p], [z], [z], [state])


def _fused(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    states: list[dict[str, Any]],
) -> None:
    adamw(
        params,
        grads,
        moments,
        [s["exp_avg_sq"] for s in states],
        [],
        [s["step"] for s in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
