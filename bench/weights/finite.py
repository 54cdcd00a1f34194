"""Finds numbers that are not finite in a model's weights and outputs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, one_line
from bench.weights.inputs import some_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def check_weights(model: nn.Module, whose: str) -> None:
    """Refuses weights that are not finite.

    Args:
        model: any model.
        whose: begins the message.

    Raises:
        BenchError: kind `nan`; the first such tensor, by name.
    """
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if not _finite(tensor):
            count = int((~tensor.isfinite()).sum())
            what = f"{count} of {tensor.numel()} numbers are NaN or infinite"
            raise BenchError(f"{whose}: {name}: {what}", "nan")


@torch.no_grad()
def check_outputs(model: PreTrainedModel, whose: str) -> None:
    """Runs the model on a few tokens and refuses outputs that are not finite.

    A model that wants other inputs than tokens is not asked.

    Args:
        model: in eval mode.
        whose: begins the message.

    Raises:
        BenchError: kind `nan`; the first linear layer with such outputs, by name.
    """
    from transformers.pytorch_utils import Conv1D  # here, so that `plan` starts without it

    def check(name: str, output: Tensor) -> None:
        if not _finite(output):
            raise BenchError(f"{whose}: the outputs of {name} are NaN or infinite", "nan")

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: check(name, output))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    try:
        model(**some_inputs(model))
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an architecture raises anything
        log.info("%s does not run on tokens alone: %s", type(model).__name__, one_line(error))
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    """Tells whether all numbers are finite, in one pass and without a temporary."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
