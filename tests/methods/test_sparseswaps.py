"""Properties of SparseSwaps (methods/README.md, sparseswaps), against trying all swaps."""

from itertools import combinations

import pytest
import torch

from methods.shared.layer_problem import keep_rows
from methods.shared.masks import pruned_count
from methods.sparseswaps import SparseSwaps, refined
from methods.wanda import Wanda
from tests.methods.test_sparsegpt import method
from tests.oracles.layer import correlated, layer_error

F64 = torch.float64


def problem(out=8, width=12, tokens=60, seed=0):
    """Weights and the Gram matrix of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, width, generator=g, dtype=F64)
    X = (X + 0.7 * X.roll(1, dims=1) + 0.5 * X[:, :1]) * torch.logspace(-0.5, 0.5, width, dtype=F64)
    return torch.randn(out, width, generator=g, dtype=F64), X.t() @ X


def error(w, kept, gram):
    lost = w * ~kept
    return float(lost @ gram @ lost)


def by_hand(W, gram, keep, swaps, m=None):
    """The best of all swaps, measured by the error itself, until none lowers it."""
    keep = keep.clone()
    for w, kept in zip(W, keep, strict=True):
        for _ in range(swaps):
            best, chosen = error(w, kept, gram) * (1 - 1e-6), None
            for u in kept.nonzero()[:, 0].tolist():
                for p in (~kept).nonzero()[:, 0].tolist():
                    if m and u // m != p // m:
                        continue
                    other = kept.clone()
                    other[u], other[p] = False, True
                    if error(w, other, gram) < best:
                        best, chosen = error(w, other, gram), other
            if chosen is None:
                break
            kept.copy_(chosen)
    return keep


@pytest.mark.parametrize("n_m", [None, (2, 4), (1, 4)])
@pytest.mark.parametrize("swaps", [1, 2, 100])
def test_every_swap_is_the_best_of_all(n_m, swaps):
    moved = 0
    for seed in range(3):
        W, gram = problem(seed=seed)
        sparsity = 1 - n_m[0] / n_m[1] if n_m else 0.6
        first = keep_rows(W.abs(), pruned_count(96, sparsity), n_m)
        ours = refined(W, gram, first, swaps, n_m)
        assert torch.equal(ours, by_hand(W, gram, first, swaps, n_m and n_m[1]))
        moved += int((ours != first).sum())
    assert moved > 20


def test_the_best_pair_of_wide_rows_is_found():
    W, gram = problem(out=6, width=48)
    first = keep_rows(W.abs(), 6 * 24, None)
    ours = refined(W, gram, first, 1)
    for row in range(6):
        kept, p = first[row].nonzero()[:, 0], (~first[row]).nonzero()[:, 0]
        d = W[row] * ~first[row]
        c, x = gram @ d, W[row]
        change = (2 * x * c + x**2 * gram.diagonal())[kept, None]
        change = change - (2 * x * c - x**2 * gram.diagonal())[None, p]
        change = change - 2 * x[kept, None] * x[None, p] * gram[kept][:, p]
        best = error(x, first[row], gram) + float(change.min())
        assert error(x, ours[row], gram) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("n_m", [None, (2, 4)])
@pytest.mark.parametrize("base", ["wanda", "magnitude", "sparsegpt"])
def test_rows_keep_their_count_and_no_row_gets_worse(n_m, base):
    W, X = correlated(seed=1)
    none = method(W, X, n_m=n_m, kind=SparseSwaps, base=base, swaps=0)
    some = method(W, X, n_m=n_m, kind=SparseSwaps, base=base)
    before, after = (((W - w) @ X.t()).square().sum(1) for w in (none, some))
    assert torch.equal((none != 0).sum(1), (some != 0).sum(1))
    assert bool((some[some != 0] == W[some != 0]).all())
    if n_m:
        assert bool(((some.view(-1, 4) != 0).sum(1) == 2).all())
    assert bool((after <= before * (1 + 1e-5)).all())
    assert layer_error(X, W, some) < 0.8 * layer_error(X, W, none)


def test_one_swap_away_from_the_best_mask_it_is_found():
    W, gram = problem(out=1, width=8, seed=5)
    masks = torch.ones(70, 8, dtype=torch.bool)
    for mask, pruned in zip(masks, combinations(range(8), 4), strict=True):
        mask[list(pruned)] = False
    best = min(masks, key=lambda kept: error(W[0], kept, gram))
    away = masks[(masks != best).sum(1) == 2]
    assert len(away) == 16
    for first in away:
        assert torch.equal(refined(W, gram, first[None], 1)[0], best)


@pytest.mark.parametrize("pruned", [0, 1, 95, 96])
def test_rows_that_keep_all_or_nothing_stay_as_they_are(pruned):
    W, gram = problem()
    first = keep_rows(W.abs(), pruned, None)
    ours = refined(W, gram, first, 100)
    assert torch.equal(ours, by_hand(W, gram, first, 100))
    assert torch.equal(ours.sum(1), first.sum(1))


def test_a_diagonal_gram_matrix_leaves_wanda_alone():
    W, _ = problem(16, 32)
    Q = torch.linalg.qr(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).Q
    X = Q * torch.logspace(-1, 1, 32)
    ours = method(W.float(), X, kind=SparseSwaps)
    assert torch.equal(ours, method(W.float(), X, kind=Wanda))


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_zeros_that_were_there_stay_and_dead_inputs_do_no_harm(n_m):
    W, X = correlated(seed=2)
    X[:, [3, 70]] = 0
    W[torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.6] = 0.0
    ours = method(W, X, n_m=n_m, kind=SparseSwaps)
    assert bool((ours[W == 0] == 0).all())
    assert int((ours == 0).sum()) >= W.numel() // 2
