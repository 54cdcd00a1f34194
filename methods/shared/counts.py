"""Counts from the shapes of a dense model, for the closed forms of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.weights.targets import head_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def all_weights(model: PreTrainedModel) -> int:
    """Returns the elements of all parameters outside the task's head; tied ones count once."""
    head = sum(p.numel() for _, p in head_parameters(model))
    return sum(p.numel() for p in model.parameters()) - head
