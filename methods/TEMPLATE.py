"""A template: prune by magnitude, then fine-tune what is left.

Copy this file, rename the class, and add a line to `methods/__init__.py`. Every line below is
needed or explained. The contract tests run this file as they run every method:

    pytest tests/test_contract.py -k fixed-mask

A docstring like this one says what the method does in equations:

    M = 1[|W| not among the ⌊n·s⌋ smallest of its matrix],   y = x (M⊙W)ᵀ + b,   W is trained
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from bench.api import Context, Field, Method, parameters
from bench.weights.targets import head_parameters, merge
from methods.shared.masks import keep_masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FixedMask(Method):
    """Magnitude mask first, training after."""

    # What lists and tables show. `paper` is empty for a baseline.
    name: ClassVar[str] = "fixed-mask"
    summary: ClassVar[str] = "magnitude mask, then fine-tuning of the weights that are left"
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0

    # The patterns that it makes; the first is the default, `N:M` stands for 2:4 and all others.
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M")

    # It trains between `attach` and `finish`, and it starts from the pretrained weights: a method
    # that starts from the dense cell's trained weights, or learns from them, sets needs_dense.
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False

    # Attributes that a checkpoint must hold, beside the model's parameters and buffers: none here.
    state: ClassVar[tuple[str, ...]] = ()

    @parameters
    class Params:
        """Checked when a cell is planned; `sparsebench list methods fixed-mask` shows them."""

        lr: float = Field(default=5e-5, gt=0, description="learning rate at hidden size 768")
        weight_decay: float = Field(default=0.01, ge=0, description="of matrices")
        warmup: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps")

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Prepares the model in place: here, a mask on every prunable weight.

        `ctx.targets` are all matrices that may be pruned. `target.weight` is (out, in), whether the
        module is nn.Linear or GPT-2's Conv1D, which stores (in, out).
        """
        scores = {target.name: target.weight.abs() for target in ctx.targets}
        masks = keep_masks(scores, ctx.cell.pattern, ctx.cell.sparsity)
        for target in ctx.targets:
            keep = masks[target.name]
            # A parametrization maps the stored tensor to the one that the forward pass uses.
            target.parametrize(Masked(keep.t() if target.transposed else keep))

    def finish(self, model: PreTrainedModel) -> None:
        """Leaves plain modules: every parametrized weight becomes its value, zeros included."""
        merge(model)

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns the trained elements outside the head: all of them, masked ones too."""
        head = sum(p.numel() for _, p in head_parameters(model))
        return sum(p.numel() for p in model.parameters()) - head


class Masked(nn.Module):
    """Multiplies a stored weight by a fixed mask."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        # A buffer moves with the model and is part of a checkpoint.
        self.register_buffer("keep", keep)

    def forward(self, stored: Tensor) -> Tensor:
        """Returns the stored weight, zero where it is pruned."""
        return torch.where(self.keep, stored, 0.0)


# Further hooks, each optional (bench/api/method.py describes them):
#   step(model, progress)         before every update, and once at the end: schedules
#   loss(model, inputs, outputs)  penalties, distillation
#   param_groups(model)           what the optimizer holds, and so what counts as trained
#   optimizer(groups)             another optimizer than AdamW
#   lr_factor(progress)           another schedule of the learning rate
#   check(cell, budget)           refuse parameters that do not fit the cell, before anything runs
#   expected(ctx)                 zeros that are certain before training, for `sparsebench count`
