"""Which arithmetic a device is asked for: bf16 where it multiplies bf16 in hardware."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def supports_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        capable: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return capable
    return False


def for_training(device: torch.device) -> str:
    """Returns `bf16-autocast` or `float32`, as it stands in the record."""
    return "bf16-autocast" if supports_bf16(device) else "float32"


def for_scoring(head: str, device: torch.device) -> str:
    """Returns the same for a score: language models are scored in bf16, as their papers do.

    A classifier's score is a count of argmaxes over a few hundred short rows: float32 costs little.
    """
    return for_training(device) if head == "causal-lm" else "float32"


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """Makes products run in the named type; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16-autocast")


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Products in the type of their operands; where tensors have no values there is no autocast."""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Returns the type that autocast gives to products with the tensor; None without it."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def device_of() -> torch.device:
    """Returns the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that `auto`, `float32` or `bf16` names on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type != "cpu" and supports_bf16(device) else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32
