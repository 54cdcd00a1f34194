"""Methods are held against their equations in float32, on any machine."""

import pytest


@pytest.fixture(autouse=True)
def in_float32(float32_passes):
    """All tests of this folder; those of bf16 set it anew."""
