"""Training on a GPU: bf16 against the CPU's float32, and no wait for the device."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from bench.pipeline import training_step
from bench.planning import registry
from tests.gpu import updates

pytestmark = pytest.mark.gpu

TRAINING = sorted(method.name for method in registry.training_methods())
# So that a few updates see every phase.
PARAMETERS = {
    "gmp": {"every": 1},
    "obert": {"start": 0.5, "end": 0.75, "choices": 2},
    "platon": {"every": 2},
    "losparse": {"every": 2},
    "rosa": {"lora_steps": 1, "gradients": 1},
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("method", TRAINING)
def test_updates_are_those_of_the_cpu(method, bf16, device):
    more = PARAMETERS.get(method, {})
    expected = updates.run(method, torch.device("cpu"), False, **more)
    found = updates.run(method, device, bf16, **more)
    coarse = 2**-8 if bf16 else 2**-18
    losses, moved, weights = zip(found, expected, strict=True)
    torch.testing.assert_close(*losses, rtol=coarse, atol=coarse)
    # Adam moves by the sign of the smallest gradients, which rounding turns.
    assert (moved[0] - moved[1]).norm() < (0.2 if bf16 else 0.02) * moved[1].norm()
    zeros = [w == 0 for w in weights]
    # Which of two nearly equal scores is the lower may change, too.
    assert (zeros[0] != zeros[1]).float().mean() <= (0.02 if bf16 else 0.002)


@contextmanager
def no_waits():
    """Fails where the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA" in str(w.message)]
    # transformers asks once a forward pass whether anything is padding.
    assert [f"{w.filename}:{w.lineno}" for w in waits if "transformers" not in w.filename] == []


@pytest.mark.parametrize("method", TRAINING)
def test_an_update_never_waits_for_the_gpu(method, cuda):
    update = training_step._update(method, "tiny-bert", 4, 16, True, cuda)
    update()
    with no_waits():
        update()


@pytest.mark.parametrize("method", sorted(PARAMETERS))
def test_nor_does_one_that_collects_gradients_or_ends_a_window(method, cuda):
    updates.run(method, cuda, True, no_waits, **PARAMETERS[method])
