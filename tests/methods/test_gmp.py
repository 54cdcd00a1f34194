"""Properties of gradual magnitude pruning (methods/README.md, gmp)."""

import itertools

import pytest
import torch

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.planning.job import Job
from bench.weights import targets
from methods.gmp import GMP, MagnitudeMask
from methods.shared.masks import keep_n_m, keep_n_m_partly, pruned_count
from methods.shared.schedules import cubic
from tests import helpers, meta
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)


def originals(model):
    """The stored weights under the masks, as (out, in), and the masked ones."""
    for target in targets.prunable(model):
        stored = target.module.parametrizations.weight.original.detach()
        yield target, (stored.t() if target.transposed else stored).contiguous()


def run_through(model, method, steps, change=None):
    """The share of zeros after the forward of each update."""
    seen = []
    for t in range(steps):
        method.step(model, t / steps)
        helpers.logits(model)
        zeros = sum(helpers.zeros(model).values())
        seen.append(zeros / sum(x.weight.numel() for x in targets.prunable(model)))
        if change:
            change(t)
    method.step(model, 1.0)
    return seen


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.9), ("2:4", 0.5)])
def test_sparsity_rises_on_the_cubic_ramp_at_every_delta_t(pattern, sparsity):
    cell = helpers.cell("gmp", "tiny-bert", sparsity, pattern, budget__steps=50, every=4)
    model, method, _ = helpers.attached(cell)
    seen = run_through(model, method, 50)
    assert all(a <= b for a, b in itertools.pairwise(seen))
    # t₀ = 5, t₁ = 35: chosen at 5, 9, …, 33 and at 35.
    for t, value in enumerate(seen):
        last = 35 if t >= 35 else 5 + (t - 5) // 4 * 4
        expected = sparsity * cubic(last, 5, 35, 0.0, 1.0) if t >= 5 else 0.0
        assert value == pytest.approx(expected, abs=1e-3), t
    assert seen[5] == 0.0
    assert seen[35:] == [seen[-1]] * 15
    method.finish(model)
    for target in targets.prunable(model):
        assert helpers.zeros(model)[target.name] == pruned_count(target.weight.numel(), sparsity)


@every
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_without_training_the_final_mask_is_one_shot_magnitude(model, pattern):
    gradual, method, _ = helpers.attached(helpers.cell("gmp", model, 0.5, pattern))
    run_through(gradual, method, method.steps)
    expected = {}
    for target, weight in originals(gradual):
        scores = weight.abs()
        k = scores.numel() // 2
        keep = keep_by_sort(scores, k) if pattern == "unstructured" else keep_n_m(scores, 2, 4)
        expected[target.name] = weight * keep
    before = helpers.logits(gradual)
    method.finish(gradual)
    for target in targets.prunable(gradual):
        assert torch.equal(target.weight, expected[target.name])
    assert torch.allclose(helpers.logits(gradual), before, atol=1e-5)


def test_no_ramp_is_one_shot_then_training_at_a_fixed_ratio():
    cell = helpers.cell("gmp", "tiny-bert", 0.6, start=0.0, end=0.0, every=1)
    model, method, _ = helpers.attached(cell)
    first = {t.name: keep_by_sort(w.abs(), pruned_count(w.numel(), 0.6))
             for t, w in originals(model)}  # fmt: skip
    g = torch.Generator().manual_seed(3)

    def train(_):
        for target in targets.prunable(model):
            stored = target.module.parametrizations.weight.original.data
            stored += 0.1 * torch.randn(stored.shape, generator=g)

    run_through(model, method, 8, train)
    method.finish(model)
    for target in targets.prunable(model):
        assert torch.equal(target.weight != 0, first[target.name])


def test_the_mask_follows_magnitude_until_the_ramp_ends_and_then_stands():
    cell = helpers.cell("gmp", "tiny-bert", 0.5, budget__steps=20, every=2)
    model, method, _ = helpers.attached(cell)
    target = targets.prunable(model)[0]
    stored = target.module.parametrizations.weight.original.data
    order = stored.abs().flatten().argsort()
    smallest, largest = order[0], order[-1]

    def alive(which):
        helpers.logits(model)
        return bool(target.module.weight.flatten()[which] != 0)

    method.step(model, 10 / 20)
    assert not alive(smallest)
    stored.view(-1)[smallest] = 9.0  # it ranks first now, and comes back at the next choice
    method.step(model, 11 / 20)
    assert not alive(smallest)
    method.step(model, 12 / 20)
    assert alive(smallest)
    method.step(model, 14 / 20)
    assert alive(largest)
    stored.view(-1)[largest] = 1e-9
    for t in (15, 16, 18, 20):  # frozen from 14 = 0.7 · 20 on
        method.step(model, t / 20)
        assert alive(largest)


def test_gradients_reach_kept_weights_only_and_are_the_products():
    model, method, _ = helpers.attached(helpers.cell("gmp", "tiny-gpt2", 0.7))
    method.step(model, 1.0)
    helpers.logits(model)
    layer, module = method.layers[0], targets.prunable(model)[0].module
    stored = module.parametrizations.weight.original
    G = torch.randn(stored.shape, generator=torch.Generator().manual_seed(2))
    module.weight.backward(G)
    keep = keep_by_sort(stored.detach().t().contiguous().abs(), pruned_count(stored.numel(), 0.7))
    assert torch.equal(stored.grad, G * keep.t())
    assert torch.equal(layer.keep.bool(), keep.t())


def test_sparsity_zero_prunes_nothing():
    for pattern in ("unstructured", "2:4"):
        model, method, _ = helpers.attached(helpers.cell("gmp", "tiny-bert", 0.0, pattern))
        method.step(model, 1.0)
        dense, _, _ = helpers.attached(helpers.cell("dense"))
        assert torch.equal(helpers.logits(model), helpers.logits(dense))


def test_n_m_partly_leaves_the_groups_that_lose_most_dense():
    g = torch.Generator().manual_seed(4)
    weight = torch.randn(6, 24, generator=g).abs()
    for fraction in (0.0, 0.3, 0.5, 1.0):
        keep = keep_n_m_partly(weight, 1, 4, fraction)
        groups = list(zip(weight.view(-1, 4), keep.view(-1, 4), strict=True))
        pruned = [w.sort().values[:3].sum() for w, kept in groups if not kept.all()]
        dense = [w.sort().values[:3].sum() for w, kept in groups if kept.all()]
        assert len(pruned) == pruned_count(36, fraction)
        assert not pruned or not dense or max(pruned) <= min(dense)
        for w, kept in groups:
            if not kept.all():
                assert torch.equal(kept, keep_by_sort(w, 3))


def test_linear_and_conv1d_make_the_same_mask():
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (12, 16), generator=g).float()  # ties
    for pattern in ("unstructured", "2:4"):
        outputs = []
        for transposed in (False, True):
            target = type("T", (), {"transposed": transposed, "shape": (12, 16), "name": "x"})()
            layer = MagnitudeMask(target, Pattern(pattern), 0.5)
            layer.due = 0.7
            out = layer(weight.t().contiguous() if transposed else weight)
            outputs.append(layer.keep.t() if transposed else layer.keep)
            assert torch.equal(out != 0, (weight.t() if transposed else weight) * layer.keep != 0)
        assert torch.equal(*outputs)


def test_all_weights_of_bert_base_train():
    counted = meta.trainable(GMP(), meta.model("bert"))
    assert counted.body + counted.head == 109_483_778


def test_a_ramp_that_ends_before_it_starts_is_refused():
    with pytest.raises(BenchError, match=r"start 0\.8: it must not be above end 0\.7"):
        Job.resolve(helpers.cell("gmp", start=0.8))
