"""From a model to a folder that `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.weights.side_branch import Branch
from bench.weights.unstacked import Unstacked, stacked


def save_model(model: PreTrainedModel, folder: Path | str) -> None:
    """Writes config and weights of a plain model, in the form that the architecture has.

    Raises:
        BenchError: an expert has a side branch, for which that form has no place.
    """
    for name, module in model.named_modules():
        if isinstance(module, Unstacked) and any(isinstance(m, Branch) for m in module.modules()):
            raise BenchError(f"{name}: a low-rank branch beside an expert cannot be saved")
    with stacked(model):
        model.save_pretrained(folder)
