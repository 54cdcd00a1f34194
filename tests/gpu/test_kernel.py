"""The kernel for 2:4 matrices: the logits of the dense model, in less time."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.costs import deployed, latency
from bench.sources import loading
from bench.weights.patterns import has_kernel
from bench.weights.targets import prunable

pytestmark = pytest.mark.gpu


@pytest.fixture
def kernel(cuda):
    """A GPU with the kernel."""
    if not has_kernel(cuda):
        pytest.skip("needs compute capability 8.0")
    return cuda


def two_of_four(width):
    """A Llama of two blocks on the CPU, the two smallest of every four inputs zeroed."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for target in prunable(model):
        groups = target.weight.view(-1, 4)
        drop = groups.abs().argsort(dim=1)[:, :2]
        target.write(groups.scatter(1, drop, 0.0).view(target.shape))
    return model


def test_the_kernel_gives_the_dense_logits(kernel):
    model = two_of_four(256).to(kernel)
    made, form = deployed.deployed(model, torch.float16)
    assert form == deployed.KERNEL
    ids = torch.randint(0, 256, (4, 64), device=kernel)
    with torch.no_grad():
        found = made(ids).logits.float()
        exact = copy.deepcopy(model).half()(ids).logits.float()
    torch.testing.assert_close(found, exact, atol=2e-2, rtol=2e-2)


def test_an_exported_model_is_faster_with_the_kernel(kernel, tmp_path):
    two_of_four(4096).save_pretrained(tmp_path)
    model = loading.load_model(tmp_path, LlamaForCausalLM).to(kernel).eval()
    speeds = latency.of_cell(model, 512)
    assert {speed.form for speed in speeds} == {deployed.KERNEL}
    # Large products alone gain: a single sequence may be as fast as it was.
    largest = max(speeds, key=lambda speed: speed.batch)
    assert largest.ms_p50 < largest.dense_ms_p50
