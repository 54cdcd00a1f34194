"""AlphaPruning against plain numpy (methods/README.md, alphapruning)."""

import math

import numpy as np
import pytest
import torch

from bench.weights import targets
from methods.alphapruning import AlphaPruning, block_means, exponent
from tests import helpers
from tests.methods.test_blockwise import batches, build, context


def by_hand(weight, tail):
    """Hill's estimate from the eigenvalues of WᵀW, as many as its rank in single precision."""
    rank = np.linalg.matrix_rank(weight.numpy())
    weight = weight.double().numpy()
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    values = np.linalg.eigvalsh(gram)[-rank:]
    if tail == "peak" and len(values) >= 100:
        counts, edges = np.histogram(np.log10(values), bins=100)
        k = int((values >= 10 ** edges[counts.argmax()]).sum()) - 1
    else:
        k = len(values) // 2
    return 1 + k / sum(math.log(v / values[-k - 1]) for v in values[-k:])


@pytest.mark.parametrize("tail", ["peak", "half"])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (150, 400), (201, 130)])
def test_the_exponent_is_hills(shape, tail):
    torch.manual_seed(0)
    weight = torch.randn(shape) + 0.2 * torch.randn(shape[0], 1) * torch.randn(1, shape[1])
    assert exponent(weight, tail) == pytest.approx(by_hand(weight, tail), rel=1e-4)


def test_the_exponent_of_a_power_law_is_found():
    """Singular values whose squares are quantiles of p(λ) ~ λ^−α."""
    n = 4000
    for alpha in (2.0, 3.5):
        values = ((torch.arange(n).double() + 0.5) / n) ** (-1 / (alpha - 1))
        weight = values.sqrt().diag()[:, :].float()
        assert exponent(weight, "half") == pytest.approx(alpha, rel=0.01)


def test_scale_changes_no_exponent_and_zeros_do_not_count():
    torch.manual_seed(0)
    weight = torch.randn(120, 300)
    for tail in ("peak", "half"):
        plain = exponent(weight, tail)
        assert exponent(1000 * weight, tail) == pytest.approx(plain, rel=1e-4)
        wider = torch.cat([weight, torch.zeros(50, 300)])
        assert exponent(wider, tail) == pytest.approx(plain, rel=1e-4)


def test_matrices_without_a_tail_have_no_exponent():
    assert exponent(torch.ones(8, 8), "half") is None  # one eigenvalue
    assert exponent(torch.eye(8), "half") is None  # all are equal
    assert exponent(torch.zeros(8, 8), "half") is None
    assert exponent(torch.zeros(200, 200), "peak") is None
    assert exponent(torch.eye(200), "peak") is None


def test_blocks_without_an_exponent_are_average():
    assert block_means([[2.0, None, 4.0], [None], [7.0]]) == [3.0, 5.0, 7.0]
    assert block_means([[None], [None]]) == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_sparsities_are_those_of_the_equations_and_need_no_pass(kind):
    model = build(kind, 4)
    torch.manual_seed(1)
    with torch.no_grad():
        for target in targets.prunable(model):
            rows, columns = target.shape
            strength = 0.1 * float(torch.rand(()))
            target.write(target.weight + strength * torch.randn(rows, 1) * torch.randn(1, columns))
    matrices, metric, sizes = targets.prunable(model), [], []
    for block in targets.blocks(model):
        inside = [t for t in matrices if any(m is t.module for m in block.modules())]
        metric.append(np.mean([by_hand(t.weight, "peak") for t in inside]))
        sizes.append(sum(t.weight.numel() for t in inside))
    metric, sizes = np.array(metric), np.array(sizes)
    ratio = 0.7 + 0.6 * (metric - metric.min()) / (metric.max() - metric.min())
    expected = ratio * 0.6 * sizes.sum() / (sizes * ratio).sum()
    method = AlphaPruning()
    ctx = context(model, [], 0.6)
    method.counts(model, ctx)
    assert method.levels == pytest.approx(list(expected), abs=1e-4)
    method.attach(model, context(model, list(batches()), 0.6))
    assert method.levels == pytest.approx(list(expected), abs=1e-4)


def test_a_heavier_tail_makes_a_block_denser():
    model = build("llama", 2)
    torch.manual_seed(2)
    with torch.no_grad():
        for target in targets.prunable(model)[7:]:
            scale = torch.logspace(0, 1.5, target.shape[0])[:, None]
            target.write(scale * target.weight)
    method = AlphaPruning()
    method.counts(model, context(model, [], 0.5))
    assert method.levels == pytest.approx([0.65, 0.35])


def test_two_blocks_lie_at_the_ends_of_the_band():
    _, method, _ = helpers.attached(helpers.cell("alphapruning", "tiny-bert", 0.5, tau=0.2))
    assert sorted(method.levels) == pytest.approx([0.4, 0.6])
