"""The form in which a pruned model runs fastest: smaller matrices, a sparse kernel, or neither.

Zeros by themselves save nothing. Dead blocks, heads and neurons are taken out
(`bench.weights.dead`); N:M has one kernel in a mainstream library, torch's 2:4 for CUDA from
compute capability 8.0 on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.pattern import Pattern
from bench.weights import dead
from bench.weights.patterns import halved, has_kernel, holds
from bench.weights.targets import prunable
from bench.weights.unstacked import unstack

DENSE, SLICED, KERNEL = "dense", "sliced", "2:4 kernel"
_KERNEL_PATTERN = Pattern("2:4")


def deployed(model: PreTrainedModel, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    """Returns a copy of an exported model in `dtype` as it would be deployed, and its form.

    Logits stay the same up to rounding.
    """
    made: Any = copy.deepcopy(model)
    form = slice_dead_units(made)
    made.to(dtype)
    return made, use_kernel(made) or form


def slice_dead_units(model: PreTrainedModel) -> str:
    """Takes what is dead out, if there is anything, and returns the form: sliced or dense."""
    try:
        if dead.removable(model):
            dead.remove(model)
            return SLICED
    except BenchError:  # makes that cannot be sliced, and low-rank branches, are left as they are
        return DENSE
    return SLICED if getattr(model.config, "sliced", None) else DENSE


def use_kernel(model: PreTrainedModel) -> str:
    """Puts 2:4 weights into modules that multiply them sparsely, where the device has a kernel.

    nn.Linear and Conv1D both become nn.Linear. Returns the form, empty where nothing was done.
    """
    if not has_kernel(model.device) or model.dtype not in (torch.float16, torch.bfloat16):
        return ""
    if not all(holds(target.weight, _KERNEL_PATTERN) for target in prunable(model)):
        return ""
    for target in halved(model, _KERNEL_PATTERN):
        module: Any = target.module
        out, width = target.shape
        linear = nn.Linear(width, out, bias=module.bias is not None, device="meta")
        sparse = torch.sparse.to_sparse_semi_structured(target.weight)
        linear.weight = nn.Parameter(sparse, requires_grad=False)
        linear.bias = module.bias
        parent, _, name = target.name.rpartition(".")
        setattr(model.get_submodule(parent), name, linear)
    return KERNEL


def dense_twin(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Makes a model of the architecture before pruning, with random weights."""
    config = copy.deepcopy(model.config)
    if getattr(config, "sliced", None):
        del config.sliced
    made: Any = type(model)(config)
    unstack(made)
    twin: PreTrainedModel = made.to(device=model.device, dtype=dtype).eval()
    return twin
