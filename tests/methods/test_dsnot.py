"""Properties of DSnoT (methods/README.md, dsnot), against a row-by-row loop of its rule."""

import pytest
import torch

from methods.dsnot import DSnoT, swapped
from methods.shared.input_statistics import Moments
from methods.shared.layer_problem import keep_rows
from methods.shared.masks import pruned_count
from tests.methods.test_sparsegpt import method
from tests.oracles.layer import correlated
from tests.oracles.sparsegpt import inverse_factor

BASES = ("wanda", "magnitude", "sparsegpt")


def problem(out=8, width=12, tokens=200, seed=0):
    """Weights, and inputs of different means and sizes."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, width, generator=g) * torch.logspace(-0.5, 0.5, width)
    return torch.randn(out, width, generator=g), X + torch.randn(width, generator=g)


def by_hand(W, X, keep, cycles=50, threshold=0.1, power=1.0, n_m=None):
    """The rule, one swap after another, with sets in place of ranks."""
    keep, mean, variance = keep.clone(), X.mean(0), X.var(0, correction=0)
    for w, kept in zip(W, keep, strict=True):
        pruned = [j for j in range(len(w)) if not kept[j]]
        losable = [j for j in range(len(w)) if kept[j]]
        error = sum(float(w[j] * mean[j]) for j in pruned)
        start = error
        for _ in range(cycles):
            if abs(error) <= threshold or error * start <= 0:
                break
            sign = 1 if error > 0 else -1
            pull = {j: float(sign * w[j] * mean[j] / variance[j] ** power) for j in pruned}
            grown = max(pruned, key=pull.__getitem__, default=None)
            if grown is None or pull[grown] <= 0:
                break
            if n_m:
                inside = [j for j in losable if j // n_m[1] == grown // n_m[1]]
            else:
                inside = [j for j in losable if sign * w[j] * mean[j] < 0]
            if not inside:
                break
            lost = min(inside, key=lambda j: float(w[j].abs() * X[:, j].norm()))
            after = error - float(w[grown] * mean[grown]) + float(w[lost] * mean[lost])
            if abs(after) >= abs(error):
                break
            kept[grown], kept[lost], error = True, False, after
            pruned.remove(grown)
            losable.remove(lost)
    return keep


def expected_error(W, X, keep):
    return (W.masked_fill(keep, 0.0) * X.mean(0)).sum(1).abs()


@pytest.mark.parametrize("n_m", [None, (2, 4), (1, 4)])
@pytest.mark.parametrize("params", [{}, {"power": 0.0}, {"threshold": 0.0}, {"cycles": 1}])
def test_it_is_what_the_rule_says(n_m, params):
    moved = 0
    for seed in range(8):
        W, X = problem(seed=seed)
        sparsity = 1 - n_m[0] / n_m[1] if n_m else 0.6
        first = keep_rows(W.abs() * X.norm(dim=0), pruned_count(96, sparsity), n_m)
        ours = method(W, X, sparsity, n_m, kind=DSnoT, **params) != 0
        assert torch.equal(ours, by_hand(W, X, first, n_m=n_m, **params))
        moved += int((ours != first).sum())
    assert moved > 16


@pytest.mark.parametrize("n_m", [None, (2, 4)])
@pytest.mark.parametrize("base", BASES)
def test_rows_keep_their_count_and_their_expected_error_falls(n_m, base):
    W, X = problem(32, 64)
    none = method(W, X, n_m=n_m, kind=DSnoT, base=base, cycles=0)
    some = method(W, X, n_m=n_m, kind=DSnoT, base=base)
    before, after = (expected_error(W, X, w != 0) for w in (none, some))
    assert torch.equal((none != 0).sum(1), (some != 0).sum(1))
    assert bool((some[some != 0] == W[some != 0]).all())
    if n_m:
        assert bool(((some.view(-1, 4) != 0).sum(1) == 2).all())
    assert bool((after <= before).all())
    assert after.sum() < 0.5 * before.sum()
    still = before < 0.1 - 1e-5
    assert torch.equal(none[still], some[still])


def test_the_first_masks_are_those_of_their_methods():
    W, X = problem(32, 64)
    R, _ = inverse_factor((X.t() @ X).double())
    scores = {
        "wanda": W.abs() * X.norm(dim=0),
        "magnitude": W.abs(),
        "sparsegpt": W.double() ** 2 / R.diagonal() ** 2,
    }
    masks = {base: method(W, X, kind=DSnoT, base=base, cycles=0) != 0 for base in BASES}
    for base, mask in masks.items():
        assert torch.equal(mask, keep_rows(scores[base], W.numel() // 2, None)), base
        assert not any(torch.equal(mask, masks[other]) for other in BASES if other != base)


def test_moments_do_not_depend_on_batches_and_a_large_mean_hides_no_variance():
    X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 0.01 + 1000
    found = Moments(5, X.device)
    for part in X.split([7, 200, 1, 92]):
        found.add(part)
    exact = X.double()
    assert torch.allclose(found.mean.double(), exact.mean(0), rtol=1e-6)
    assert torch.allclose(found.variance.double(), exact.var(0, correction=0), rtol=1e-2)
    assert torch.allclose(found.norms.double(), exact.norm(dim=0), rtol=1e-5)


def test_inputs_of_mean_zero_leave_the_mask_alone():
    W, X = correlated(seed=0)
    X = torch.cat([X, -X])
    first = method(W, X, kind=DSnoT, cycles=0)
    assert torch.equal(method(W, X, kind=DSnoT, threshold=1e-3), first)


def test_the_worked_example():
    # ε = 3 + 1 = 4: 3 returns for −2 (ε = 4 − 3 − 2 = −1, closer to 0), and there it ends.
    expected = torch.tensor([[3.0, 1.0, -2.0, 5.0]])
    keep = torch.tensor([[False, False, True, True]])
    found = swapped(keep, expected, expected, torch.ones(1, 4), 50, 0.1)
    assert found.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_zeros_that_were_there_stay_zero(n_m):
    W, X = problem(32, 64)
    W[torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0.0
    ours = method(W, X, n_m=n_m, kind=DSnoT)
    assert bool((ours[W == 0] == 0).all())
    assert int((ours == 0).sum()) >= W.numel() // 2
