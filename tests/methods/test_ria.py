"""Properties of RIA (methods/README.md, ria)."""

import pytest
import torch

from methods.ria import RIA, ria_scores
from methods.shared.blockwise import ColumnNorms
from methods.shared.masks import pruned_count
from tests import helpers
from tests.oracles.topk import keep_by_sort


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pruned(W, norms, sparsity=0.5, n_m=None, **params):
    method = RIA(RIA.Params(**params))
    method.n_m = n_m
    statistic = ColumnNorms(W.shape[1], W.device)
    statistic.add(torch.diag(norms))
    return method.pruned(W, statistic, pruned_count(W.numel(), sparsity))


def test_scores_equal_the_formula_element_by_element():
    W, norms = random(5, 7), random(7, seed=1).abs()
    scores = ria_scores(W, norms, 0.5)
    for i in range(5):
        for j in range(7):
            share = abs(W[i, j]) / W[:, j].abs().sum() + abs(W[i, j]) / W[i].abs().sum()
            assert scores[i, j].item() == pytest.approx((share * norms[j] ** 0.5).item(), rel=1e-5)


def test_power_zero_is_relative_importance_whatever_the_inputs():
    W, norms = random(20, 32), random(32, seed=1).abs()
    norms[4] = 0
    assert torch.equal(pruned(W, norms, a=0.0), pruned(W, torch.ones(32), a=0.5))
    assert not torch.equal(pruned(W, norms, a=0.5), pruned(W, norms, a=0.0))


def test_rows_and_columns_of_zeros_score_zero():
    W = random(6, 8)
    W[2], W[:, 3] = 0, 0
    scores = ria_scores(W, torch.ones(8), 0.5)
    assert bool(scores.isfinite().all())
    assert not scores[2].any()
    assert not scores[:, 3].any()


def test_pool_is_the_layer_or_the_row():
    W, norms = random(10, 33), random(33, seed=1).abs()
    scores = ria_scores(W, norms, 0.5)
    assert torch.equal(pruned(W, norms) != 0, keep_by_sort(scores, 165))
    rows = pruned(W, norms, pool="row") == 0
    assert set(rows.sum(1).tolist()) == {16, 17}
    assert int(rows.sum()) == 165


def test_n_m_holds_in_consecutive_inputs():
    # The permutation is the identity, so nothing has to be stored for the pattern to hold.
    W, norms = random(10, 32), random(32, seed=1).abs()
    keep = pruned(W, norms, n_m=(2, 4)).view(-1, 4) != 0
    scores = ria_scores(W, norms, 0.5).view(-1, 4)
    for group, kept in zip(scores, keep, strict=True):
        assert torch.equal(kept, keep_by_sort(group, 2))


def test_scaling_all_inputs_changes_no_mask():
    W, norms = random(10, 32), random(32, seed=1).abs()
    assert torch.equal(pruned(W, norms), pruned(W, 16 * norms))


@pytest.mark.parametrize("pool", ["layer", "row"])
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_exact_zeros_in_every_matrix(model, pool):
    sparse, _, ctx = helpers.attached(helpers.cell("ria", model, 0.7, pool=pool))
    for target in ctx.targets:
        n = target.weight.numel()
        assert helpers.zeros(sparse)[target.name] == pruned_count(n, 0.7)
