"""Fine-tuning of a pruned model that keeps its zeros, with any optimizer of Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainingArguments

from bench.core.errors import BenchError
from bench.weights.forms import check_plain
from bench.weights.targets import prunable
from bench.weights.unstacked import stacks, unstacked


class KeepZeros(TrainerCallback):
    """Keeps the zeros that the blocks' matrices have when training begins.

    After every update they are exactly zero, whatever the optimizer, its momentum and its weight
    decay do. Their gradients are zero, too, so that clipping does not see them.

    Attributes:
        zeros: number of zeros that are kept.
    """

    def __init__(self) -> None:
        self.zeros = 0
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self._handles: list[RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Notes where the zeros are.

        Raises:
            BenchError: the model is in pieces, is not plain, or has no zeros.
        """
        if args.fsdp or args.deepspeed:
            raise BenchError("KeepZeros needs whole weights; train without fsdp and deepspeed")
        check_plain(model)
        self.on_train_end()
        for parameter in pruned_parameters(model):
            zero = parameter.detach() == 0
            if bool(zero.any()):
                self._kept.append((parameter, zero))
        self.zeros = sum(int(zero.sum()) for _, zero in self._kept)
        if not self.zeros:
            name = type(model).__name__
            raise BenchError(f"{name} has no zeros in its blocks to keep; prune it first")
        for parameter, zero in self._kept:
            if parameter.requires_grad:
                hook = _Masked(zero)
                self._handles.append(parameter.register_hook(hook))

    def on_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, **_: Any
    ) -> None:
        """Writes the zeros again."""
        with torch.no_grad():
            for parameter, zero in self._kept:
                parameter.masked_fill_(zero, 0.0)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Lets go of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], []


class _Masked:
    """A gradient without the places that are zero."""

    def __init__(self, zero: Tensor) -> None:
        self.zero = zero

    def __call__(self, grad: Tensor) -> Tensor:
        return grad.masked_fill(self.zero, 0.0)


def pruned_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that methods prune, in the model's own form: an expert's stack is one.

    Raises:
        BenchError: as `targets.prunable`.
    """
    experts = {stack: None for _, _, stack, _ in stacks(model)}
    with unstacked(model):
        held = {target.held: None for target in prunable(model)}
    own = set(model.parameters())
    return [p for p in (*held, *experts) if p in own]  # type: ignore[misc]
