"""Pruning without training on a GPU: masks of the CPU, and layers of a real model's size."""

import warnings

import pytest
import torch

from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from bench.weights.targets import Target, prunable
from methods.admm import ADMM
from methods.shared.masks import pruned_count
from methods.shared.reconstruct import Block, refit
from methods.sparsegpt import SparseGPT
from tests.helpers import TRAINING_FREE, cell

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_passes")]


def zeros_of(method, device):
    """Which weights of tiny Llama a method zeroes, flat."""
    job = Job.resolve(cell(method, "tiny-llama"))
    loaded = loading.load_for_task(job.place, job.task, job.cell.seed)
    loaded.tok.model_max_length = job.budget.length
    model, made = loaded.model.to(device), job.make_method()
    made.attach(model, make_context(job, loaded, torch.device(device)))
    made.finish(model)
    return torch.cat([(t.weight == 0).flatten().cpu() for t in prunable(model)])


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_masks_are_those_of_the_cpu(method, device):
    found, expected = zeros_of(method, device), zeros_of(method, "cpu")
    assert int(found.sum()) == int(expected.sum()) > 0
    assert (found == expected).float().mean() > 0.999  # scores that are nearly equal may swap


def solved(kind, weight, gram, n_m, sparsity):
    """A matrix that `kind` prunes, given XᵀX of its inputs."""
    method = kind()
    method.n_m, method.sequences, method.sparsity = n_m, 16, sparsity
    statistic = method.statistic(weight.shape[1], weight.device)
    statistic.sum = gram.clone()
    return method.pruned(weight.clone(), statistic, pruned_count(weight.numel(), sparsity))


def error(weight, pruned, gram):
    """‖XWᵀ − XŴᵀ‖²_F."""
    change = (weight - pruned).double()
    return float(((change @ gram.double()) * change).sum())


@pytest.mark.parametrize("n_m", [None, (2, 4)])
@pytest.mark.parametrize("kind", [SparseGPT, ADMM])
def test_a_large_matrix_is_pruned_as_on_the_cpu(kind, n_m, device):
    size = 4096 if device.type == "cuda" else 256
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=g)
    few = size // 4
    mixed = torch.randn(2 * size, few, generator=g) @ torch.randn(few, size, generator=g)
    inputs = mixed / few**0.5 + 0.3 * torch.randn(2 * size, size, generator=g)
    gram = inputs.t() @ inputs
    there, seen = weight.to(device), gram.to(device)
    pruned = solved(kind, there, seen, n_m, 0.5)
    assert pruned.isfinite().all()
    zeros = pruned == 0
    assert int(zeros.sum()) == size * size // 2
    if n_m:
        assert (zeros.view(-1, 4).sum(1) == 2).all()
    # Magnitude, with as many zeros.
    small = there.abs().flatten().argsort()[: size * size // 2]
    plain = there.flatten().index_fill(0, small, 0.0).view_as(there)
    assert error(there, pruned, seen) < 0.8 * error(there, plain, seen)
    own = solved(kind, weight, gram, n_m, 0.5)
    found = pruned.cpu()
    assert ((own == 0) == (found == 0)).float().mean() > 0.99
    assert error(weight, found, gram) == pytest.approx(error(weight, own, gram), rel=0.01)


def half_block(device):
    """A pruned matrix as a block, with its dense outputs on two batches."""
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 32).to(device)
    inputs = [torch.randn(8, 64) @ torch.randn(64, 64) for _ in range(2)]
    inputs = [x.to(device) for x in inputs]
    target = Target("matrix", module)
    with torch.no_grad():
        wanted = [module(x) for x in inputs]
    target.write(target.weight.masked_fill(target.weight < 0, 0.0))
    return Block([target], [lambda x=x: module(x) for x in inputs], wanted)


def test_a_refit_is_that_of_the_cpu(device):
    found, expected = half_block(device), half_block(torch.device("cpu"))
    first = float(expected.error())
    for block in (found, expected):
        refit(block, 20, 1e-2)
    assert expected.error() < 0.5 * first
    assert float(found.error()) == pytest.approx(float(expected.error()), rel=0.01)
    weights = [block.targets[0].weight.cpu() for block in (found, expected)]
    torch.testing.assert_close(*weights, rtol=1e-2, atol=1e-3)


def test_a_refit_waits_twice_whatever_the_updates(cuda):
    def waits(passes):
        block = half_block(cuda)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                refit(block, passes, 1e-3)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA" in str(w.message) for w in caught)

    assert waits(1) == waits(9) == 2
