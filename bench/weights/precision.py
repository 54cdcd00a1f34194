"""The arithmetic of training and scoring: bf16 where the device multiplies bf16 in hardware."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def supports_bf16(device: torch.device) -> bool:
    """Tells whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        capable: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return capable
    return False


def for_training(device: torch.device) -> str:
    """Returns the arithmetic of training, as the record states it: `bf16-autocast` or `float32`."""
    return "bf16-autocast" if supports_bf16(device) else "float32"


def for_scoring(head: str, device: torch.device) -> str:
    """Returns the arithmetic of scoring, as the record states it: `bf16-autocast` or `float32`.

    Language models are large, and their papers score them in bf16. A classifier's score counts
    argmaxes over a few hundred short rows, where float32 costs little. The forward passes of
    calibration are computed alike.
    """
    return for_training(device) if head == "causal-lm" else "float32"


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """Makes a context in which products run in `dtype`; weights stay float32.

    Args:
        dtype: what `for_training` or `for_scoring` returned.
        device: the device of the products.
    """
    if device.type == "meta":  # has no values, and knows no autocast
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16-autocast")


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes a context in which products keep the dtype of their operands.

    The meta device, whose tensors have no values, knows no autocast.
    """
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Returns the dtype that autocast gives to products with the tensor; None without autocast."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def default_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that `auto`, `float32` or `bf16` names on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type != "cpu" and supports_bf16(device) else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32
