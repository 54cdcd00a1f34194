"""Biases that an architecture can have and a model has not: added as zeros, so nothing changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bench.weights.targets import Target
from bench.weights.unstacked import unstack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_biases(model: PreTrainedModel, targets: Sequence[Target]) -> None:
    """Gives the targets zero biases where a flag of the config (`attention_bias`, …) makes them.

    The flag is then set in the model's config, so that whoever loads the model makes them, too. A
    flag may make further biases, of query, key and value for example; they are zeros as well.
    """
    wanted = {f"{target.name}.bias" for target in targets if target.module.bias is None}
    flags = [k for k, v in vars(model.config).items() if "bias" in k and v is False]
    for flag in flags:
        made = _with(model, flag) if wanted else {}
        new = made.keys() - dict(model.named_parameters()).keys()
        if not wanted & new or not all(_fits(model, name) for name in new):
            continue
        for name in new:
            module: Any = model.get_submodule(name.removesuffix(".bias"))
            weight = module.weight
            zeros = torch.zeros(made[name].shape, dtype=weight.dtype, device=weight.device)
            module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        setattr(model.config, flag, True)
        wanted -= new


def _with(model: PreTrainedModel, flag: str) -> dict[str, nn.Parameter]:
    """Returns the parameters of a model that is made with a flag, without values."""
    config = copy.deepcopy(model.config)
    setattr(config, flag, True)
    with torch.device("meta"):
        made: Any = type(model)(config)
        unstack(made)
    return dict(made.named_parameters())


def _fits(model: PreTrainedModel, name: str) -> bool:
    """Tells whether a new parameter is a bias that a module of the model has a place for."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner) if leaf == "bias" else None
    return module is not None and getattr(module, "bias", math.nan) is None
