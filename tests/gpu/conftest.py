"""Where the tests of this folder run: on a GPU, or nowhere."""

import os

import pytest
import torch


@pytest.fixture
def device():
    """The device that is held against the CPU.

    SPARSEBENCH_TEST_DEVICE=cpu holds the CPU against itself: that tries the tests, not a device.
    """
    chosen = torch.device(os.environ.get("SPARSEBENCH_TEST_DEVICE", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return chosen


@pytest.fixture
def cuda(device):
    """A GPU, for what the CPU does not have: streams and kernels."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device
