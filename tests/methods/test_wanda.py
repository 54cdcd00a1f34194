"""Properties of Wanda (methods/README.md, wanda), and the variant."""

import pytest
import torch

from methods.shared.input_statistics import ColumnNorms, wanda_scores
from methods.shared.masks import keep_largest_per_row, keep_spread, pruned_count
from methods.wanda import Wanda, keep_equal_loss
from tests import helpers
from tests.oracles.layer import correlated, layer_error
from tests.oracles.topk import keep_by_sort


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistic(X):
    norms = ColumnNorms(X.shape[1], X.device)
    norms.add(X)
    return norms


def pruned(W, X, sparsity=0.5, n_m=None, **params):
    method = Wanda(Wanda.Params(**params))
    method.n_m, method.sparsity = n_m, sparsity
    return method.pruned(W, statistic(X), pruned_count(W.numel(), sparsity))


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_constant_norms_are_magnitude_in_every_row(n_m):
    W, X = random(20, 32), torch.ones(7, 32)
    rows = W.abs().reshape(-1, 4) if n_m else W.abs()
    keep = torch.stack([keep_by_sort(row, len(row) // 2) for row in rows]).view(W.shape)
    assert torch.equal(pruned(W, X, n_m=n_m) != 0, keep)


def test_scaling_an_input_and_its_weights_inversely_leaves_the_mask_alone():
    W, X = random(20, 32), random(50, 32, seed=1)
    scale = torch.ones(32)
    scale[3], scale[8] = 16.0, 0.25  # powers of two: no rounding moves a tie
    before, after = pruned(W, X), pruned(W / scale, X * scale)
    assert torch.equal(before != 0, after != 0)
    assert not torch.equal(before != 0, pruned(W, X * scale) != 0)


def test_optimal_per_row_when_inputs_are_orthogonal():
    # ‖XWᵀ − XŴᵀ‖² = Σ_pruned w²‖X_j‖² then; brute force over all masks of one row.
    Q = torch.linalg.qr(random(40, 8).double()).Q
    X = (Q * torch.logspace(-1, 1, 8)).float()
    W = random(6, 8, seed=2)
    ours = pruned(W, X)
    for row, mine in zip(W, ours, strict=True):
        masks = [m for m in range(256) if m.bit_count() == 4]
        bits = torch.tensor([[m >> j & 1 for j in range(8)] for m in masks]).float()
        best = ((X @ (row * bits - row).t()) ** 2).sum(0).min()
        assert ((X @ (mine - row)) ** 2).sum() == pytest.approx(best.item(), rel=1e-4)
    magnitude = W * keep_largest_per_row(W.abs(), 4)
    assert layer_error(X, W, ours) < 0.5 * layer_error(X, W, magnitude)


def test_statistic_does_not_depend_on_how_tokens_are_batched():
    X = random(300, 16)
    whole, parts = statistic(X), ColumnNorms(16, X.device)
    for part in X.split([7, 200, 1, 92]):
        parts.add(part)
    assert torch.allclose(whole.norms, X.norm(dim=0), rtol=1e-5)
    assert torch.allclose(whole.norms, parts.norms, rtol=1e-5)


def test_half_precision_inputs_neither_overflow_nor_tie():
    X = torch.full((1000, 4), 300.0, dtype=torch.float16)
    assert statistic(X).norms[0] == pytest.approx(300 * 1000**0.5, rel=1e-5)


def test_rows_lose_equally_many_and_the_matrix_is_exact():
    W, X = random(10, 33), random(50, 33, seed=1)
    per_row = (pruned(W, X, 0.7) == 0).sum(1)
    assert per_row.sum() == pruned_count(330, 0.7) == 231
    assert set(per_row.tolist()) == {23, 24}  # 23.1 a row
    reference = (pruned(W, X, 0.7, compat="reference") == 0).sum(1)
    assert reference.tolist() == [int(33 * 0.7)] * 10
    assert not Wanda(Wanda.Params(compat="reference")).promises_sparsity


def test_n_m_keeps_exactly_n_of_m():
    W, X = random(10, 32), random(50, 32, seed=1)
    assert bool(((pruned(W, X, 0.75, (1, 4)).view(-1, 4) != 0).sum(1) == 1).all())


def test_variant_is_what_bisection_of_alpha_converges_to():
    scores = wanda_scores(random(12, 40), random(40, seed=1).abs())
    k = 240
    keep = keep_equal_loss(scores, k)
    assert int((~keep).sum()) == k
    # The longest prefix of every row whose sum is at most α of the row's, α bisected.
    ordered = scores.double().sort(dim=1).values
    share = ordered.cumsum(1) / ordered.sum(1, keepdim=True)
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        low, high = (alpha, high) if int((share <= alpha).sum()) < k else (low, alpha)
    assert torch.equal((~keep).sum(1), (share <= high).sum(1))
    for row, kept in zip(scores, keep, strict=True):
        assert row[kept].min() > row[~kept].max()
    assert len(set((~keep).sum(1).tolist())) > 2  # unlike the default, rows differ


def test_variant_survives_rows_of_zeros():
    scores = random(4, 8).abs()
    scores[1] = 0
    keep = keep_equal_loss(scores, 12)
    assert int((~keep).sum()) == 12
    assert not keep[1].any()


@pytest.mark.parametrize("total", [0, 1, 5, 30, 41, 59, 60])
def test_spread_equals_a_stable_sort_of_every_row_with_ties(total):
    scores = torch.randint(0, 4, (6, 10), generator=torch.Generator().manual_seed(1)).float()
    keep = keep_spread(scores, total)
    for r, (row, kept) in enumerate(zip(scores, keep, strict=True)):
        k = (r + 1) * total // 6 - r * total // 6
        assert torch.equal(kept, keep_by_sort(row, k))


@pytest.mark.parametrize("use_variant", [False, True])
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_zeros_in_every_matrix_are_exact_where_rows_cannot_be(model, use_variant):
    cell = helpers.cell("wanda", model, 0.7, use_variant=use_variant)
    sparse, _, ctx = helpers.attached(cell)
    found = helpers.zeros(sparse)
    for target in ctx.targets:
        assert found[target.name] == pruned_count(target.weight.numel(), 0.7)


def test_below_magnitude_on_correlated_inputs():
    # The recipe of tests/oracles/layer.py: worst ratio of 50 seeds 0.375 (50 %) and 0.527 (2:4).
    W, X = correlated(seed=3)
    for n_m in (None, (2, 4)):
        ones = torch.ones(1, X.shape[1])
        wanda, magnitude = pruned(W, X, n_m=n_m), pruned(W, ones, n_m=n_m)
        assert layer_error(X, W, wanda) < 0.8 * layer_error(X, W, magnitude)
