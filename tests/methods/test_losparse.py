"""Properties of LoSparse (methods/README.md, losparse), and what "sparsity" means with a branch."""

import math
from types import SimpleNamespace

import pytest
import torch

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.core.record_parts import Trainable
from bench.costs.contract import check_contract
from bench.costs.macs import count_macs
from bench.costs.parameters import count_params, count_sparsity
from bench.sources import loading
from bench.weights import targets
from bench.weights.patterns import holds
from methods.losparse import LoSparse, rank, truncated_svd
from methods.shared.masks import pruned_count
from methods.shared.schedules import cubic
from tests import helpers, meta
from tests.helpers import fit_cell
from tests.oracles.platon import importance
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
# 20 updates: nothing up to 2, the ramp up to 14, the hold after it.
STEPS, FIRST, LAST, DELTA = 20, 2, 14, 4


def attached(model="tiny-bert", sparsity=0.5, **more):
    more = {"budget__steps": STEPS, "every": DELTA, "lr": 1e-3} | more
    return helpers.attached(helpers.cell("losparse", model, sparsity, **more))[:2]


def low_rank(target):
    """L·R of a target, (out, in)."""
    return (target.module.branch.up @ target.module.branch.down).detach()


def branches(model):
    return sum(sum(p.numel() for p in t.module.branch.parameters())
               for t in targets.prunable(model))  # fmt: skip


def rows_kept(model):
    """One flag a row of S, over all matrices."""
    return torch.cat([(t.weight != 0).any(dim=1) for t in targets.prunable(model)])


def sizes(model):
    """Elements in each row, over all matrices."""
    return torch.cat([torch.full(t.shape[:1], t.shape[1]) for t in targets.prunable(model)])


# The start


@every
def test_at_the_start_the_model_computes_what_the_dense_one_does(model):
    split, _ = attached(model)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.allclose(helpers.logits(split), helpers.logits(dense), atol=1e-4)
    for a, b in zip(targets.prunable(split), targets.prunable(dense), strict=True):
        assert torch.allclose(low_rank(a) + a.weight, b.weight, atol=1e-6)


@every
def test_l_and_r_are_the_best_approximation_of_their_rank(model):
    split, _ = attached(model)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    for a, b in zip(targets.prunable(split), targets.prunable(dense), strict=True):
        r = rank(a.shape, 0.05)
        L, R = a.module.branch.up, a.module.branch.down
        assert (L.shape, R.shape) == ((a.shape[0], r), (r, a.shape[1]))
        sigma = torch.linalg.svdvals(b.weight)
        # Eckart and Young: what is left has the other singular values, no more.
        assert torch.allclose(torch.linalg.svdvals(a.weight)[:-r], sigma[r:], atol=1e-5)
        # The root of each singular value goes to either side.
        assert torch.allclose(L.t() @ L, sigma[:r].diag(), atol=1e-5)
        assert torch.allclose(R @ R.t(), sigma[:r].diag(), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kappa", "expected"),
    [((768, 768), 0.05, 20), ((3072, 768), 0.05, 31), ((768, 3072), 0.05, 31),
     ((64, 64), 0.05, 2), ((100, 100), 0.2, 10), ((10, 10), 0.58, 3), ((90, 20), 0.55, 9)],
)  # fmt: skip
def test_ranks_are_the_papers(shape, kappa, expected):
    assert rank(shape, kappa) == expected
    o, i = shape
    assert expected * (o + i) >= kappa * o * i - 1e-6 > (expected - 1) * (o + i)


def test_svd_of_a_matrix_of_that_rank_leaves_nothing():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 3, generator=g) @ torch.randn(3, 20, generator=g)
    L, R = truncated_svd(weight, 3)
    assert torch.allclose(L @ R, weight, atol=1e-5)


# What a cell stores


@every
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_l_r_and_what_is_kept_of_s_are_what_the_sparsity_leaves(model, sparsity):
    split, method = attached(model, sparsity)
    helpers.learn(split, method, STEPS)
    method.finish(split)
    n = sum(t.weight.numel() for t in targets.prunable(split))
    kept = sum(int(t.weight.count_nonzero()) for t in targets.prunable(split))
    stored = kept + branches(split)
    allowed = n - pruned_count(n, sparsity)
    widest = max(t.shape[1] for t in targets.prunable(split))
    assert allowed - widest < stored <= allowed
    # What the record will say: zeros of S, and numbers on disk.
    found = count_sparsity(split, Pattern("rows"))
    assert found.pattern_ok
    assert found.overall == pytest.approx(sparsity + branches(split) / n, abs=widest / n)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    whole = count_params(dense, Trainable(body=0, head=0))
    assert count_params(split, Trainable(body=0, head=0)).stored == whole.stored - n + stored


def test_a_finished_cell_counts_and_comes_back(tmp_path):
    cell = helpers.cell("losparse", "tiny-gpt2", 0.8, budget__steps=6, budget__batch=4)
    fit = fit_cell(cell, lambda *_: None)
    fit.model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path, type(fit.model))
    found = count_sparsity(again, cell.pattern)
    check_contract(cell, fit.method, found, again)
    assert found.overall > 0.8
    assert branches(again) == branches(fit.model)
    assert torch.allclose(helpers.logits(again), helpers.logits(fit.model), atol=1e-5)
    macs = count_macs(again, 16)
    pruned = sum(int((t.weight == 0).sum()) for t in targets.prunable(again))
    assert macs.dense - macs.effective == 16 * pruned


@every
def test_without_s_the_model_is_purely_low_rank(model):
    split, method = attached(model)
    method.surplus = int(method.widths.sum())
    for target, keep in zip(targets.prunable(split), method.choose(1.0), strict=True):
        assert not keep.any()
        assert keep.shape[target.transposed] == target.shape[0]
    method.zero(method.choose(1.0))
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    for a, b in zip(targets.prunable(split), targets.prunable(dense), strict=True):
        assert not a.weight.any()
        b.write(low_rank(a))
    assert torch.allclose(helpers.logits(split), helpers.logits(dense), atol=1e-5)


def test_impossible_ratios_are_refused():
    # ρ is rounded up: L and R of the tiny model take more than 5 %.
    with pytest.raises(BenchError, match=r"L and R take, 0\.066 of the weights"):
        attached(sparsity=0.95)


# Which rows go


def history(model, method, steps=STEPS, **more):
    """(S, gradient) of every update as (out, in), and the rows kept after it."""
    found = [[] for _ in targets.prunable(model)]
    kept = []

    def before(t):
        for target, seen in zip(targets.prunable(model), found, strict=True):
            grad = target.module.weight.grad.double()
            seen.append((target.weight.double(), grad.t() if target.transposed else grad))

    helpers.learn(model, method, steps, before, lambda t: kept.append(rows_kept(model)), **more)
    return found, kept


@every
def test_importance_of_a_row_is_the_mean_over_it(model):
    split, method = attached(model)
    found, _ = history(split, method)
    for seen, score in zip(found, method.importance.scores(), strict=True):
        smoothed, _ = importance(seen, DELTA, LAST, 0.85, 1.0)
        expected = smoothed.mean(dim=1).float()
        median = float(expected[expected != 0].median())
        assert torch.allclose(score.flatten(), expected, rtol=1e-3, atol=1e-3 * median)


@every
def test_the_lowest_rows_of_all_matrices_go_on_the_cubic_ramp(model):
    split, method = attached(model, 0.7)
    found, kept = history(split, method)
    wide = sizes(split)
    surplus = pruned_count(int(wide.sum()), 0.7) + branches(split)
    for t in range(1, STEPS + 1):
        due = t >= LAST or (t > FIRST and t % DELTA == 0)
        gone = ~kept[t - 1]
        if not due:
            assert not gone.any()  # grown back
            continue
        wanted = surplus * cubic(t, FIRST, LAST, 0.0, 1.0)
        lost = int(wide[gone].sum())
        assert wanted <= lost < wanted + wide.max(), t
        if t % DELTA == 0 or t == LAST:
            means = [importance(s[:t], DELTA, LAST, 0.85, 1.0)[0].mean(dim=1) for s in found]
            lowest = ~keep_by_sort(torch.cat(means), int(gone.sum()))
            assert (lowest != gone).sum() <= 2, t  # rounding, at the threshold


@every
def test_rows_go_whole(model):
    split, method = attached(model, 0.8)
    helpers.learn(split, method, STEPS)
    for target in targets.prunable(split):
        zeros = (target.weight == 0).sum(dim=1)
        assert set(zeros.tolist()) <= {0, target.shape[1]}
    assert 0 < rows_kept(split).float().mean() < 1


def test_the_pattern_needs_whole_rows():
    weight = torch.ones(4, 8)
    assert holds(weight, Pattern("rows"))
    weight[1] = 0.0
    assert holds(weight, Pattern("rows"))
    weight[2, :4] = 0.0
    assert not holds(weight, Pattern("rows"))


def test_rows_compete_by_the_mean_and_pay_their_width():
    model, method = attached(sparsity=0.5)
    # By the mean the wide rows (FFN output) rank lowest; by the sum all would tie.
    method.importance.smoothed = [
        torch.full_like(score, 1.0 / target.shape[1])
        for score, target in zip(method.importance.smoothed, method.targets, strict=True)
    ]
    gone = torch.cat([keep.flatten() for keep in method.choose(1.0)]) == 0
    wide = sizes(model) == 128
    left = method.surplus - 128 * int(wide.sum())
    assert gone[wide].all()
    assert int(gone[~wide].sum()) == math.ceil(left / 64) < int((~wide).sum())


def test_linear_and_conv1d_lose_the_same_rows():
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 16, generator=g), torch.randn(16, 24, generator=g)]
    found = []
    for transposed in (False, True):
        here = helpers.matrices(weights, transposed)
        method = LoSparse(LoSparse.Params(every=2))
        method.attach(None, SimpleNamespace(
            cell=SimpleNamespace(sparsity=0.6), budget=SimpleNamespace(steps=10), targets=here,
            device=torch.device("cpu")))  # fmt: skip
        draw = torch.Generator().manual_seed(1)
        for t in range(10):
            method.step(None, t / 10)
            for target in here:
                grad = torch.randn(target.shape, generator=draw)
                target.module.weight.grad = grad.t().contiguous() if transposed else grad
            method.observe()
            method.prune()
        found.append([target.weight.clone() for target in here])
    assert any((w == 0).all(dim=1).any() for w in found[0])
    for linear, conv in zip(*found, strict=True):
        assert torch.allclose(linear, conv, atol=1e-6)
        assert torch.equal(linear == 0, conv == 0)


# Counts


@pytest.mark.parametrize(
    ("kind", "total"),
    # GPT-2: 12·(29·3072 + 20·1536 + 2·31·3840), its q, k, v being one matrix.
    [("bert", 109_483_778 + 4_331_520), ("gpt2", 124_439_808 + 4_294_656)],
)
def test_all_parameters_train_with_l_and_r(kind, total):
    counted = meta.trainable(LoSparse(), meta.model(kind), "rows")
    assert counted.body + counted.head == total


def test_promises_what_it_can_keep():
    assert not LoSparse.promises_sparsity
    assert LoSparse.patterns == ("rows",)
