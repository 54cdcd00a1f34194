"""What only a GPU can show: kernels, arithmetic in bf16, and waits that the CPU does not have."""

import copy
import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.core.pattern import default_of
from bench.costs import deployed
from bench.pipeline import training_step
from bench.pipeline.context import make_context
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import loading
from bench.weights.targets import prunable
from tests.helpers import CALIBRATED, cell, models_for, run_cell

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = registry.builtin("method")
TRAINING = sorted(method.name for method in registry.training_methods())


def llama():
    """Wide enough for the kernel's tiles."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().cuda()


def two_of_four(model):
    """Zeroes the two smallest of every four inputs."""
    for target in prunable(model):
        groups = target.weight.view(-1, 4)
        drop = groups.abs().argsort(dim=1)[:, :2]
        target.write(groups.scatter(1, drop, 0.0).view(target.shape))
    return model


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_keeps_its_promise(method):
    budget = {"budget__steps": 12, "budget__batch": 8}
    model = models_for(registry.method(method))[0]
    run_cell(cell("dense", model, **budget))  # others start from it, or learn from it
    record = run_cell(cell(method, model, **budget))
    assert record.status == "done", record.error
    assert record.sparsity.pattern_ok
    pattern = default_of(registry.method(method).patterns[0])
    if registry.method(method).promises_sparsity and str(pattern) != "dense":
        assert record.sparsity.overall == pytest.approx(0.5, abs=0.01)


def test_the_kernel_gives_the_dense_logits():
    model = two_of_four(llama())
    made, form = deployed.deployed(model, torch.float16)
    assert form == deployed.KERNEL
    ids = torch.randint(0, 256, (4, 64), device="cuda")
    with torch.no_grad():
        found = made(ids).logits.float()
        exact = copy.deepcopy(model).half()(ids).logits.float()
    torch.testing.assert_close(found, exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("method", TRAINING)
def test_an_update_never_waits_for_the_gpu(method):
    update = training_step._update(method, "tiny-bert", 4, 16, True, torch.device("cuda"))
    update()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA" in str(w.message)]
    # transformers asks once a forward pass whether anything is padding.
    assert [f"{w.filename}:{w.lineno}" for w in waits if "transformers" not in w.filename] == []


@pytest.mark.parametrize("method", ["magnitude", *CALIBRATED])
def test_masks_are_those_of_the_cpu(method):
    def mask(device):
        job = Job.resolve(cell(method, "tiny-llama"))
        loaded = loading.load_for_task(job.place, job.task, job.cell.seed)
        loaded.tok.model_max_length = job.budget.length
        model, made = loaded.model.to(device), job.make_method()
        made.attach(model, make_context(job, loaded, torch.device(device)))
        made.finish(model)
        return torch.cat([(t.weight == 0).flatten().cpu() for t in prunable(model)])

    found, expected = mask("cuda"), mask("cpu")
    assert int(found.sum()) == int(expected.sum())
    assert (found == expected).float().mean() > 0.999  # scores that are nearly equal may swap
