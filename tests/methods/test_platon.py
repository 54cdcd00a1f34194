"""Properties of PLATON (methods/README.md, platon), and its equations by brute force."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench.api import BenchError
from bench.weights import targets
from methods.platon import PLATON
from methods.shared.masks import pruned_count
from methods.shared.schedules import cubic
from tests import helpers, meta
from tests.oracles.platon import importance
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
# 20 updates: nothing up to 2, the ramp up to 14, the hold after it.
STEPS, FIRST, LAST, DELTA = 20, 2, 14, 4


def attached(model="tiny-bert", sparsity=0.5, steps=STEPS, delta=DELTA, **more):
    # A learning rate at which weights leave zero visibly.
    cell = helpers.cell("platon", model, sparsity, budget__steps=steps, every=delta,
                        **({"lr": 1e-3} | more))  # fmt: skip
    return helpers.attached(cell)[:2]


class Watch:
    """What (θ, gradient) each update saw, and the weights that it left."""

    def __init__(self, model):
        self.targets = targets.prunable(model)
        self.history = [[] for _ in self.targets]
        self.left = []

    def before(self, t):
        for target, seen in zip(self.targets, self.history, strict=True):
            seen.append((target.stored.double(), target.module.weight.grad.double()))

    def after(self, t):
        self.left.append([target.stored.clone() for target in self.targets])

    def zeros(self, t):
        return torch.cat([w.flatten() == 0 for w in self.left[t - 1]])


def watched(model, method, steps=STEPS, **more):
    watch = Watch(model)
    helpers.learn(model, method, steps, watch.before, watch.after, **more)
    return watch


def close(found, expected):
    """Equal up to float32's rounding; scores of 1e-18 need a yardstick of their own."""
    expected = expected.float()
    median = expected[expected != 0].median()
    return torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(median))


@every
@pytest.mark.parametrize("beta2", [0.95, 1.0, 0.0])
def test_scores_are_the_papers_equations(model, beta2):
    model, method = attached(model, beta2=beta2)
    watch = watched(model, method)
    for seen, score in zip(watch.history, method.importance.scores(), strict=True):
        smoothed, uncertain = importance(seen, DELTA, LAST, 0.85, beta2)
        expected = smoothed if beta2 == 1.0 else smoothed * uncertain
        assert close(score, expected)


def test_sensitivity_takes_the_weight_from_before_the_update():
    model, method = attached(steps=10, delta=1, sparsity=0.0, beta1=0.0, beta2=1.0)
    watch = watched(model, method, 10)
    theta, grad = watch.history[0][-1]
    assert close(method.importance.scores()[0], (theta * grad).abs())
    assert not close(method.importance.scores()[0], (watch.left[-1][0] * grad).abs())


def test_micro_batches_are_one_gradient():
    scores = []
    for micro in (1, 4):
        model, method = attached(sparsity=0.0, beta2=1.0)
        watched(model, method, DELTA, micro=micro)
        scores.append(method.importance.scores())
    for whole, pieces in zip(*scores, strict=True):
        assert close(whole, pieces)


@every
def test_one_pool_follows_the_cubic_ramp_and_is_exact_all_through_the_hold(model):
    model, method = attached(model, 0.7)
    watch = watched(model, method)
    total = watch.zeros(1).numel()
    for t in range(1, STEPS + 1):
        if t >= LAST:
            wanted = pruned_count(total, 0.7)
        elif t > FIRST and t % DELTA == 0:
            wanted = pruned_count(total, 0.7 * cubic(t, FIRST, LAST, 0.0, 1.0))
        else:
            wanted = 0  # grown back
        assert int(watch.zeros(t).sum()) == wanted, t
    per_matrix = [float((w == 0).float().mean()) for w in watch.left[-1]]
    assert max(per_matrix) - min(per_matrix) > 0.05


def test_the_lowest_scores_of_all_matrices_go():
    model, method = attached(sparsity=0.7)
    watch = watched(model, method)
    for t in (4, 8, 12, 14, 16):
        pairs = [importance(seen[:t], DELTA, LAST, 0.85, 0.95) for seen in watch.history]
        pool = torch.cat([(i * u).flatten() for i, u in pairs])
        keep = keep_by_sort(pool, int(watch.zeros(t).sum()))
        # Rounding may swap weights at the threshold.
        assert (keep == watch.zeros(t)).sum() <= 1e-4 * len(pool), t


def test_weights_grow_back_on_the_ramp_and_may_not_in_the_hold():
    model, method = attached(sparsity=0.7)
    watch = watched(model, method)
    pruned = watch.zeros(8)
    assert pruned.any()
    assert not watch.zeros(9)[pruned].any()
    # In the hold a window's choice stands until the next one: 16, 17, 18, 19.
    assert all(torch.equal(watch.zeros(16), watch.zeros(t)) for t in (17, 18, 19))


def test_a_weight_that_grew_back_is_kept_when_it_ranks_high():
    model, method = attached(sparsity=0.7)
    watch = watched(model, method)
    assert (watch.zeros(4) & ~watch.zeros(20)).any()


@every
def test_at_sparsity_zero_training_is_the_dense_cells(model):
    pruned, method = attached(model, 0.0)
    helpers.learn(pruned, method, STEPS)
    method.finish(pruned)
    same = {"lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1}
    dense, plain, _ = helpers.attached(helpers.cell("dense", model, **same))
    helpers.learn(dense, plain, STEPS)
    for a, b in zip(pruned.parameters(), dense.parameters(), strict=True):
        assert torch.equal(a, b)


def test_biases_are_in_no_pool():
    model, method = attached(sparsity=0.9)
    for target in targets.prunable(model):
        nn.init.constant_(target.module.bias, 1e-6)  # would rank lowest
    helpers.learn(model, method, STEPS)
    method.finish(model)
    assert all(bool(t.module.bias.all()) for t in targets.prunable(model))
    held = sum(score.numel() for score in method.importance.scores())
    assert held == sum(t.weight.numel() for t in targets.prunable(model))


def test_a_run_shorter_than_a_window_prunes_by_what_it_has_seen():
    model, method = attached(sparsity=0.5, steps=6, delta=10)
    watch = watched(model, method, 6)
    smoothed, uncertain = zip(*(importance(h, 10, 4, 0.85, 0.95) for h in watch.history),
                              strict=True)  # fmt: skip
    pool = torch.cat([(i * u).flatten() for i, u in zip(smoothed, uncertain, strict=True)])
    keep = keep_by_sort(pool, pruned_count(len(pool), 0.5))
    assert not watch.zeros(3).any()
    assert (keep == watch.zeros(6)).sum() <= 1e-4 * len(pool)


def test_an_update_after_the_last_belongs_to_the_hold():
    # As training steps are timed: at the final sparsity from the first one on.
    model, method = attached(sparsity=0.6)
    optimizer = method.optimizer(method.param_groups(model))
    method.step(model, 1.0)
    model(**helpers.batch(0)).loss.backward()
    optimizer.step()
    total = sum(t.weight.numel() for t in targets.prunable(model))
    assert sum(helpers.zeros(model).values()) == pruned_count(total, 0.6)


def test_finish_leaves_plain_zeros():
    model, method = attached(sparsity=0.9)
    helpers.learn(model, method, STEPS)
    method.finish(model)
    for target in targets.prunable(model):
        weight = target.weight
        assert not weight[weight == 0].signbit().any()


def test_linear_and_conv1d_lose_the_same_weights():
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(12, 16, generator=g), torch.randn(8, 12, generator=g)]
    grads = [[torch.randn(w.shape, generator=g) for w in weights] for _ in range(10)]
    found = []
    for transposed in (False, True):
        here = helpers.matrices(weights, transposed)
        method = PLATON(PLATON.Params(every=2))
        ctx = SimpleNamespace(
            cell=SimpleNamespace(sparsity=0.6), budget=SimpleNamespace(steps=10), targets=here
        )
        method.attach(None, ctx)
        for t, step in enumerate(grads):
            method.step(None, t / 10)
            for target, grad in zip(here, step, strict=True):
                target.module.weight.grad = grad.t().contiguous() if transposed else grad
            method.observe()
            method.prune()
        found.append([target.weight.clone() for target in here])
    assert sum(int((w == 0).sum()) for w in found[0]) == pruned_count(288, 0.6)
    for linear, conv in zip(*found, strict=True):
        assert torch.equal(linear, conv)


@pytest.mark.parametrize(("kind", "total"), [("bert", 109_483_778), ("gpt2", 124_439_808)])
def test_all_parameters_train_and_none_is_added(kind, total):
    counted = meta.trainable(PLATON(), meta.model(kind))
    assert counted.body + counted.head == total


def test_the_pool_of_bert_base_is_its_matrices_alone():
    method = PLATON()
    meta.trainable(method, meta.model("bert"))
    assert sum(w.numel() for w in method.importance.window) == 84_934_656


def test_impossible_schedules_are_refused():
    with pytest.raises(BenchError, match="ramp would run from 0.6 to 0.4"):
        attached(warmup=0.2, initial_warmup=3.0)
