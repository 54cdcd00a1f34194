"""Models as users hold them: what can be taken, and how each gets its own form back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from bench.core import seeds
from bench.core.errors import BenchError

EXACT = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes whose numbers float32 holds without rounding."""


def check_plain(model: Any) -> None:
    """Refuses what is no plain model with its weights in one place, before anything changes.

    Raises:
        BenchError: naming what is wrong, and what would be right.
    """
    from transformers import PreTrainedModel  # here, so that `plan` starts without it

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise BenchError(f"{name} is no model of transformers; pass a PreTrainedModel")
    if hasattr(model, "peft_config"):
        raise BenchError(f"{name} holds adapters; merge them first (merge_and_unload)")
    if getattr(model.config, "quantization_config", None):
        raise BenchError(f"{name} is quantized; pass plain weights")
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise BenchError(f"{name} holds parametrizations; merge them first")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or devices == {torch.device("meta")}:
        found = ", ".join(sorted(map(str, devices))) or "no device"
        raise BenchError(f"{name} lies on {found}; move it to one device that holds values")
    for parameter in model.parameters():
        if parameter.dtype not in EXACT:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise BenchError(f"{name} has weights of type {kind}; pass float32, bf16 or fp16")


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Sets eval mode inside the context; afterwards training flags and random states are back."""
    states = seeds.states()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        seeds.set_states(states)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Makes all weights float32 inside the context; afterwards each has its own dtype again.

    A parameter that is added inside gets the dtype of the model's first.
    """
    parameters = [(p, p.dtype) for p in model.parameters()]
    usual = parameters[0][1]
    buffers = [
        (module, name, buffer.dtype)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.float()
    try:
        yield
    finally:
        known = {id(p) for p, _ in parameters}
        added = [(p, usual) for p in model.parameters() if id(p) not in known]
        for parameter, dtype in parameters + added:
            grad, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.to(dtype)
            parameter.grad = None if grad is None else grad.to(dtype)
        for module, name, dtype in buffers:
            module._buffers[name] = module.get_buffer(name).to(dtype)
