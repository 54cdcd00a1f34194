"""Properties of ADMM (methods/README.md, admm), and the solver against the paper's equations."""

import pytest
import torch

from bench.api import BenchError
from methods.admm import ADMM
from methods.shared.layer_problem import scaled, support
from methods.shared.masks import keep_n_m, pruned_count
from methods.wanda import Wanda
from tests import helpers
from tests.methods.test_sparsegpt import method
from tests.oracles.layer import correlated, layer_error
from tests.oracles.layer_admm import admm
from tests.oracles.topk import keep_by_sort

F64 = torch.float64


def problem(out=8, width=12, tokens=40, seed=0):
    """Weights and correlated inputs of different sizes."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, width, generator=g, dtype=F64)
    X = (X + X.roll(1, dims=1)) * torch.logspace(-1, 1, width, dtype=F64)
    return torch.randn(out, width, generator=g, dtype=F64), X


def solve(W, X, sparsity=0.5, n_m=None, **params):
    made = ADMM(ADMM.Params(**params))
    made.n_m, made.sequences = n_m, 16
    statistic = made.statistic(X.shape[1], X.device)
    statistic.sum = X.t() @ X  # in float64
    return made.pruned(W, statistic, pruned_count(W.numel(), sparsity))


def gradual(k, n_m=None):
    def keep_of(size, done):
        if n_m:
            size = size.masked_fill(keep_n_m(size, *n_m), torch.inf)
        return keep_by_sort(size.reshape(-1), round(done * k)).view(size.shape)

    return keep_of


@pytest.mark.parametrize("n_m", [None, (2, 4), (1, 4)])
@pytest.mark.parametrize("params", [{}, {"percdamp": 0.01, "rho": 0.3}, {"ramp": 1}])
def test_it_is_what_the_equations_say(n_m, params):
    W, X = problem()
    sparsity = 1 - n_m[0] / n_m[1] if n_m else 0.7
    k = pruned_count(W.numel(), sparsity)
    theirs = admm(W, X, gradual(k, n_m), **params)
    ours = solve(W, X, sparsity, n_m, **params)
    assert torch.equal(ours == 0, theirs == 0)
    assert torch.allclose(ours, theirs, atol=1e-10)
    assert int((ours == 0).sum()) == k


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_many_iterations_reach_the_least_squares_answer_of_their_mask(n_m):
    W, X = problem()
    ours = solve(W, X, n_m=n_m, iterations=3000)
    norms = X.norm(dim=0)
    H = (X / norms).t() @ (X / norms)
    H += 0.1 * torch.eye(len(H), dtype=F64)
    for mine, dense in zip(ours * norms, W * norms, strict=True):
        kept = mine != 0
        best = torch.linalg.solve(H[kept][:, kept], H[kept] @ dense)
        assert torch.allclose(mine[kept], best, atol=1e-9)


def test_the_ramp_prunes_the_smallest_first_and_ends_at_the_pattern():
    size = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    absent = torch.zeros_like(size, dtype=torch.bool)
    whole = keep_n_m(size, 2, 4)
    assert torch.equal(support(size, 0, (2, 4), absent), whole)
    half = support(size, 0, (2, 4), absent, 0.5)
    assert int((~half).sum()) == 24
    assert bool((whole <= half).all())
    assert size[~half].max() < size[half & ~whole].min()


def test_scaling_an_input_and_its_weights_inversely_changes_nothing():
    W, X = problem()
    scale = torch.ones(12, dtype=F64)
    scale[2], scale[7] = 16.0, 0.25
    assert torch.allclose(solve(W / scale, X * scale) * scale, solve(W, X), atol=1e-10)


def test_dead_inputs_go_first_and_what_stays_is_unharmed():
    W, X = problem()
    X[:, :6] = 0
    few = solve(W, X, 0.25)
    kept = few[:, :6] != 0
    assert int((~kept).sum()) == int((few == 0).sum()) == 24
    assert torch.allclose(few[:, :6][kept], W[:, :6][kept], rtol=1e-6)
    assert torch.allclose(few[:, 6:], W[:, 6:], atol=1e-9)  # nothing was lost
    assert bool(solve(W, 0 * X, 0.25).isfinite().all())
    assert torch.equal(scaled(X.t() @ X, 0.0).norms[6:], X.norm(dim=0)[6:])


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_zeros_that_were_there_stay(n_m):
    W, X = problem()
    W[torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = 0.0
    ours = solve(W, X, n_m=n_m)
    assert bool((ours[W == 0] == 0).all())
    if n_m is None:
        assert int((ours == 0).sum()) == 48
    else:
        assert bool(((ours.view(-1, 4) != 0).sum(1) <= 2).all())


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_below_wanda_on_correlated_inputs(n_m):
    W, X = correlated(seed=3)
    ours, wanda = method(W, X, n_m=n_m, kind=ADMM), method(W, X, n_m=n_m, kind=Wanda)
    assert layer_error(X, W, ours) < 0.8 * layer_error(X, W, wanda)


def test_matrices_with_one_input_share_one_inverse(monkeypatch):
    calls, original = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda H: calls.append(1) or original(H))
    helpers.attached(helpers.cell("admm", "tiny-bert"))
    layers = helpers.attached(helpers.cell("dense", "tiny-bert"))[0].config.num_hidden_layers
    assert len(calls) == 4 * layers  # q, k, v together; then o, and two of the FFN


def test_a_ramp_without_end_is_refused():
    with pytest.raises(BenchError, match=r"method admm: ramp 15: it is at most iterations, 10"):
        helpers.attached(helpers.cell("admm", iterations=10))
