"""Properties of oBERT (methods/README.md, obert), and its equations by brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.api import BenchError, Pattern
from bench.weights import targets
from methods.obert import OBERT
from methods.shared.block_fisher import BlockFisher
from methods.shared.masks import pruned_count
from methods.shared.schedules import cubic
from tests import helpers, meta
from tests.oracles import block_fisher as oracle

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
# 20 updates: choices before the updates 4, 8, 12 and 16.
STEPS = 20
PLAN = {"start": 0.2, "end": 0.8, "choices": 4, "gradients": 3, "kd": 0.0}


def attached(model="tiny-bert", sparsity=0.5, pattern=None, steps=STEPS, **more):
    cell = helpers.cell("obert", model, sparsity, pattern, budget__steps=steps,
                        **(PLAN | {"lr": 1e-3} | more))  # fmt: skip
    return helpers.attached(cell)[:2]


def weights(model):
    return torch.cat([t.weight.flatten() for t in targets.prunable(model)])


def close(found, expected, rtol=1e-3):
    expected = np.asarray(expected)
    assert np.allclose(found.numpy(), expected, rtol=rtol, atol=rtol * abs(expected).max())


@pytest.mark.parametrize(("d", "size", "scale"), [(24, 8, 1e-3), (23, 5, 1e-3), (6, 50, 1e-3),
                                                  (24, 8, 10.0)])  # fmt: skip
@pytest.mark.parametrize("m", [3, 40])
def test_the_blocks_are_those_of_the_dense_inverse(d, size, scale, m):
    # A scale of 10 is where float32 would round λ away.
    rng = np.random.default_rng(0)
    grads, v = scale * rng.standard_normal((m, d)), rng.standard_normal(d)
    fisher = BlockFisher(torch.tensor(grads).float(), 1e-7, size)
    exact = oracle.inverse(grads.astype(np.float32).astype(np.float64), 1e-7, size)
    close(fisher.precision(), 1 / np.diag(exact))
    close(fisher.solve(torch.tensor(v).float()), exact @ v)


def test_the_inverse_is_that_of_the_papers_recursion():
    grads = 1e-3 * np.random.default_rng(1).standard_normal((30, 12))
    recursive = oracle.woodbury(grads, 1e-7)
    assert np.allclose(recursive, oracle.inverse(grads, 1e-7, 12), rtol=1e-6)
    close(BlockFisher(torch.tensor(grads).float(), 1e-7, 12).precision(), 1 / np.diag(recursive))


def test_many_blocks_are_worked_on_some_at_a_time(monkeypatch):
    grads, v = torch.randn(4, 50), torch.randn(50)
    fisher = BlockFisher(grads, 1e-3, 4)
    whole = fisher.precision(), fisher.solve(v)
    monkeypatch.setattr("methods.shared.block_fisher._AT_ONCE", 3 * 16)
    for a, b in zip(whole, (fisher.precision(), fisher.solve(v)), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def chosen(shapes, sparsity, transposed=False, pattern="unstructured", **more):
    """Weights before and after one choice by five gradients, and these gradients."""
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g) for shape in shapes]
    grads = [[1e-3 * torch.randn(w.shape, generator=g) for w in start] for _ in range(5)]
    here = helpers.matrices(start, transposed)
    method = OBERT(OBERT.Params(**({"start": 0.5, "choices": 1, "kd": 0.0, "block": 5} | more)))
    cell = SimpleNamespace(sparsity=sparsity, pattern=Pattern(pattern))
    method.attach(None, SimpleNamespace(cell=cell, budget=SimpleNamespace(steps=10), targets=here))
    for t, step in enumerate(grads):
        method.step(None, t / 10)
        for target, grad in zip(here, step, strict=True):
            target.module.weight.grad = grad.t().contiguous() if transposed else grad.clone()
        method._observe([target.module.weight for target in here])
    method.step(None, 0.5)
    return start, [target.weight.clone() for target in here], grads


@pytest.mark.parametrize("transposed", [False, True])
def test_a_choice_is_the_papers_one_weight_at_a_time(transposed):
    start, left, grads = chosen([(6, 8), (4, 6)], 0.4, transposed)
    made = []
    for k, weight in enumerate(start):
        seen = np.stack([step[k].flatten().double().numpy() for step in grads])
        found = oracle.inverse(seen, 1e-7, 5)
        flat = weight.flatten().double().numpy()
        made.append((flat, found, oracle.pruned(flat, found, [])[0]))
    # One pool over both matrices.
    order = np.argsort(np.concatenate([saliency for _, _, saliency in made]))
    lowest = set(order[: pruned_count(72, 0.4)])
    for (flat, found, _), after, offset in zip(made, left, (0, 48), strict=True):
        gone = [q for q in range(len(flat)) if q + offset in lowest]
        close(after.flatten(), oracle.pruned(flat, found, gone)[1])
        assert set(np.flatnonzero(after.flatten() == 0)) == set(gone)
    moved = torch.cat([(a != b)[b != 0] for a, b in zip(start, left, strict=True)])
    assert moved.any()


def test_n_m_keeps_the_most_salient_of_each_group():
    start, left, grads = chosen([(6, 8)], 0.5, pattern="2:4")
    seen = np.stack([step[0].flatten().double().numpy() for step in grads])
    flat = start[0].flatten().double().numpy()
    saliency, _ = oracle.pruned(flat, oracle.inverse(seen, 1e-7, 5), [])
    lowest = np.argsort(saliency.reshape(-1, 4), axis=1)[:, :2]
    zeros = left[0].reshape(-1, 4) == 0
    assert (np.sort(lowest, 1) == np.array([np.flatnonzero(z) for z in zeros])).all()


def test_without_a_gradient_it_is_magnitude_and_moves_nothing():
    start, left, _ = chosen([(6, 8)], 0.5, damp=1e6)  # λ drowns the gradients
    cut = start[0].abs().flatten().sort().values[23]
    assert torch.allclose(left[0], torch.where(start[0].abs() > cut, start[0], 0.0))
    model, method = attached(steps=5)
    before = weights(model)
    method.step(model, 1.0)  # as training steps are timed: at once, without a gradient
    after = weights(model)
    keep = after != 0
    assert int((~keep).sum()) == pruned_count(len(keep), 0.5)
    assert before[keep].abs().min() >= before[~keep].abs().max()
    assert torch.equal(after[keep], before[keep])


@every
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsity_follows_the_ramp_and_nothing_comes_back(model, pattern):
    model, method = attached(model, pattern=pattern)
    left = []
    helpers.learn(model, method, STEPS, after=lambda _: left.append(weights(model) == 0))
    for t, zeros in enumerate(left):
        k = sum(t >= due for due in (4, 8, 12, 16)) - 1
        ramp = cubic(k, 0, 3, 0.78, 1.0) if k >= 0 else 0.0
        if pattern == "unstructured":
            assert int(zeros.sum()) == pruned_count(len(zeros), 0.5 * ramp)
        else:
            assert float(zeros.float().mean()) == pytest.approx(0.5 * ramp, abs=1e-3)
        assert not t or bool((left[t - 1] <= zeros).all())
    groups = left[-1].view(-1, 4).sum(1)
    assert bool((groups == 2).all()) == (pattern == "2:4")


def test_gradients_are_whole_unclipped_and_those_of_the_last_updates(monkeypatch):
    seen = []
    monkeypatch.setattr("methods.obert.CLIP", 1e-3)
    model, method = attached(gradients=2)
    held = [t.module.weight for t in targets.prunable(model)]
    record = lambda _: seen.append([w.grad.clone() for w in held])  # noqa: E731
    buffers = {}
    choose = method._choose

    def watch(ramp):
        buffers[method.done] = [b[: method.collected].clone() for b in method.buffer]
        choose(ramp)

    monkeypatch.setattr(method, "_choose", watch)
    clipped = []
    helpers.learn(
        model, method, STEPS, record, lambda _: clipped.append([w.grad for w in held]), micro=2
    )
    assert buffers.keys() == {4, 8, 12, 16}
    for due, buffer in buffers.items():
        for k, rows in enumerate(buffer):
            expected = torch.stack([seen[t][k] for t in (due - 2, due - 1)])
            zero = rows == 0  # of pruned weights
            assert torch.equal(rows[~zero], expected[~zero])
            assert float(zero.float().mean()) < 0.6
    norm = torch.stack([g.norm() for g in clipped[-1]]).norm()
    assert float(norm) <= 1e-3


def test_copies_of_two_bytes_choose_nearly_the_same():
    made = [chosen([(30, 40)], 0.5, held=held)[1][0] for held in ("float32", "bfloat16")]
    assert not torch.equal(*made)
    assert ((made[0] == 0) == (made[1] == 0)).float().mean() > 0.97


def test_the_rate_rewinds_at_each_choice():
    _, method = attached()
    rates = [method.lr_factor(t / STEPS) for t in range(STEPS + 1)]
    tops = [t for t in range(STEPS) if rates[t] == 1.0]
    assert tops == [0, 4, 8, 12, 16]
    for t in tops:
        assert rates[t + 2] == pytest.approx(0.55)
        assert rates[t + 3] == pytest.approx(0.325)
    assert rates[STEPS] == pytest.approx(0.1)


def test_the_default_choices_are_those_of_the_recipe():
    # Epochs 2, 6, …, 26 of 30.
    method = OBERT(OBERT.Params(kd=0.0))
    cell = SimpleNamespace(pattern=Pattern("unstructured"), sparsity=0.9)
    method.attach(None, SimpleNamespace(cell=cell, budget=SimpleNamespace(steps=300), targets=[]))
    assert method.times == [20, 60, 100, 140, 180, 220, 260]


def test_the_teacher_is_asked_only_where_it_counts():
    asked = []
    teacher = helpers.attached(helpers.cell("dense"))[0]
    for kd in (0.0, 0.5):
        cell = helpers.cell("obert", budget__steps=STEPS, kd=kd)
        model, method, _ = helpers.attached(cell, teacher=lambda: asked.append(1) or teacher)
        assert method.needs_dense == bool(kd)
        inputs = helpers.batch(0)
        outputs = model(**inputs)
        # The student is still its teacher: distillation is 0.
        loss = method.loss(model, inputs, outputs)
        assert float(loss.detach()) == pytest.approx(
            (1 - kd) * float(outputs.loss.detach()), rel=1e-4
        )
    assert len(asked) == 1


def test_finish_leaves_plain_zeros():
    model, method = attached(sparsity=0.9)
    helpers.learn(model, method, STEPS)
    method.finish(model)
    left = weights(model)
    assert not left[left == 0].signbit().any()


def test_all_weights_of_bert_base_train():
    counted = meta.trainable(OBERT(OBERT.Params(kd=0.0)), meta.model("bert"))
    assert counted.body + counted.head == 109_483_778


def test_a_plan_that_ends_before_it_starts_is_refused():
    with pytest.raises(BenchError, match=r"start 0.9: it must not be above end 0.5"):
        attached(start=0.9, end=0.5)
