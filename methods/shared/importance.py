"""Smoothed sensitivity and its uncertainty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Importance:
    """Smoothed sensitivity Ĩ of some tensors and its uncertainty Ũ."""

    def __init__(self, like: list[Tensor], beta1: float, beta2: float) -> None:
        self.betas = (beta1, beta2)
        self.count = 0
        self.window = [torch.zeros_like(x) for x in like]
        self.smoothed = [torch.zeros_like(x) for x in like]
        self.uncertain = [torch.zeros_like(x) for x in like] if beta2 < 1 else []

    def state_dict(self) -> dict[str, Any]:
        """Returns what training has changed."""
        return {k: v for k, v in vars(self).items() if k != "betas"}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Puts it back."""
        vars(self).update(saved)

    def end_window(self) -> None:
        """Averages the window into Ĩ, its distance from the new Ĩ into Ũ, and empties it."""
        beta1, beta2 = self.betas
        for k, (window, smoothed) in enumerate(zip(self.window, self.smoothed, strict=True)):
            smoothed.lerp_(window.div_(self.count), 1.0 - beta1)
            if self.uncertain:
                self.uncertain[k].lerp_(window.sub_(smoothed).abs_(), 1.0 - beta2)
            window.zero_()
        self.count = 0

    def scores(self) -> list[Tensor]:
        """Ĩ⊙Ũ, or Ĩ where the uncertainty is left out."""
        if not self.uncertain:
            return self.smoothed
        return [i * u for i, u in zip(self.smoothed, self.uncertain, strict=True)]
