"""Properties of L0 gates (methods/README.md, l0)."""

import math

import pytest
import torch

from bench.weights import targets
from methods.l0 import L0, HardConcrete, open_probability
from methods.shared.lagrangian import Lagrangian, rising
from tests import helpers, meta

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)


def gate(scores, u=None):
    """z of the equations, differentiable; without `u` the gate after training."""
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    inner = scores if u is None else (torch.log(u / (1 - u)) + scores) / beta
    return (torch.sigmoid(inner) * (zeta - gamma) + gamma).clamp(0, 1)


@pytest.mark.parametrize("score", [-3.0, -1.0, 0.0, 0.7, 2.197])
def test_open_probability_is_what_drawing_gates_finds(score):
    n = 200_000
    layer = HardConcrete((n,), score)
    torch.manual_seed(0)
    share = (layer(torch.ones(n)) > 0).float().mean().item()
    p = open_probability(torch.tensor(score)).item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)


@every
def test_wide_open_gates_without_penalty_are_dense(model):
    sparse, method, _ = helpers.attached(helpers.cell("l0", model, initial=20.0, penalty=0.0))
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.equal(helpers.logits(sparse), helpers.logits(dense))
    for target in targets.prunable(sparse):
        target.module.train()
        assert torch.equal(target.weight, target.module.parametrizations.weight.original.t()
                           if target.transposed
                           else target.module.parametrizations.weight.original)  # fmt: skip
    outputs = type("O", (), {"loss": torch.tensor(0.3)})()
    assert method.loss(sparse, {}, outputs) == outputs.loss


def test_gradients_equal_autograd_through_the_equations():
    g = torch.Generator().manual_seed(0)
    shape = (40, 50)
    layer = HardConcrete(shape, 0.0)
    layer.scores.data = 2 * torch.randn(shape, generator=g)
    W, G = torch.randn(shape, generator=g).requires_grad_(), torch.randn(shape, generator=g)
    torch.manual_seed(5)
    out = layer(W)
    out.backward(G)
    torch.manual_seed(5)
    u = torch.rand(shape)
    w, s = (x.detach().clone().requires_grad_() for x in (W, layer.scores))
    expected = gate(s, u) * w
    expected.backward(G)
    z = expected.detach() / w.detach()
    assert min((z == 0).sum(), (z == 1).sum(), ((z > 0) & (z < 1)).sum()) > 100
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(W.grad, w.grad, atol=1e-6)
    assert torch.allclose(layer.scores.grad, s.grad, atol=1e-5)


def test_after_training_a_gate_is_zero_up_to_logit_one_twelfth():
    edge = math.log((1 / 12) / (11 / 12))
    layer = HardConcrete((4,), 0.0).eval()
    layer.scores.data = torch.tensor([edge - 1e-3, edge + 1e-3, -9.0, 9.0])
    out = layer(torch.full((4,), 3.0))
    assert (out == 0).tolist() == [True, False, True, False]
    assert out[3] == 3.0


@every
def test_merge_multiplies_by_the_gate_after_training(model):
    sparse, method, ctx = helpers.attached(helpers.cell("l0", model))
    g = torch.Generator().manual_seed(1)
    for layer in method.layers:
        layer.scores.data = 3 * torch.randn(layer.scores.shape, generator=g)
    expected = {}
    for target, layer in zip(ctx.targets, method.layers, strict=True):
        stored = target.module.parametrizations.weight.original.detach()
        value = gate(layer.scores.detach()) * stored
        expected[target.name] = value.t() if target.transposed else value
    before = helpers.logits(sparse)
    sparse.train()
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    for target in targets.prunable(sparse):
        assert torch.allclose(target.weight, expected[target.name], atol=1e-6)
        assert torch.equal(target.weight == 0, expected[target.name] == 0)


def test_the_penalty_is_constant_and_added_to_the_loss():
    model, method, _ = helpers.attached(helpers.cell("l0"))
    outputs = type("O", (), {"loss": torch.tensor(0.3)})()
    expected = 0.3 + 125 / (1 + math.exp(-(2.197 - 2 / 3 * math.log(0.1 / 1.1))))
    for progress in (0.0, 0.5, 1.0):
        method.step(model, progress)
        assert method.loss(model, {}, outputs).item() == pytest.approx(expected, rel=1e-5)


def test_counts_are_movements():
    frozen = L0(L0.Params(freeze_embeddings=True))
    assert sum(dict(meta.trainable(L0(), meta.model("bert"))).values()) == 194_418_434
    assert sum(dict(meta.trainable(frozen, meta.model("bert"))).values()) == 170_581_250


def test_promises_sparsity_with_a_target_alone_and_decays_no_score():
    assert helpers.attached(helpers.cell("l0", target="lagrangian"))[1].promises_sparsity
    model, method, _ = helpers.attached(helpers.cell("l0"))
    assert not method.promises_sparsity
    group = method.param_groups(model)[-1]
    assert group["weight_decay"] == 0.0
    assert {id(p) for p in group["params"]} == {id(x.scores) for x in method.layers}


def test_the_lagrangian_by_hand():
    made = Lagrangian(rate=2.0, square=7.0, device=torch.device("cpu"))
    first = gap = 0.0
    for target, sparsity in ((0.0, 0.1), (0.3, 0.1), (0.5, 0.45), (0.5, 0.7)):
        made.ascend(target)
        first += 2.0 * gap
        gap = target - sparsity
        s = torch.tensor(sparsity, requires_grad=True)
        term = made.term(s)
        term.backward()
        assert term.item() == pytest.approx(first * gap + 7 * gap**2, abs=1e-6)
        assert s.grad.item() == pytest.approx(-first - 14 * gap, abs=1e-5)


@pytest.mark.parametrize(
    ("progress", "end", "target"),
    [(0, 0.5, 0), (0.25, 0.5, 0.4), (0.5, 0.5, 0.8), (1, 0.5, 0.8), (0, 0, 0.8)],
)
def test_the_target_rises_evenly(progress, end, target):
    assert rising(progress, end, 0.8) == pytest.approx(target)


def test_settled_gates_are_shut_or_open():
    layer = HardConcrete((30, 40), 0.0).eval()
    layer.scores.data = torch.randn(30, 40, generator=torch.Generator().manual_seed(3)) - 1.5
    before, keep = layer.scores.detach().clone(), torch.arange(40).expand(30, 40) % 3 > 0
    layer.settle(keep)
    out = layer(torch.ones(30, 40))
    assert torch.equal(out != 0, keep)
    assert torch.allclose(out[keep], gate(before).clamp(min=0.001)[keep], atol=1e-6)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_lagrangian_steers_to_the_sparsity_and_ends_at_it(sparsity):
    more = {"target": "lagrangian", "budget__steps": 150, "budget__batch": 16}
    fit = helpers.fit_cell(helpers.cell("l0", sparsity=sparsity, **more))
    assert fit.method.report["expected_sparsity"] == pytest.approx(sparsity, abs=0.02)
    zeros = [(t.weight == 0).flatten() for t in targets.prunable(fit.model)]
    scores = [layer.scores.flatten() for layer in fit.method.layers]
    shut, all_scores = torch.cat(zeros), torch.cat(scores)
    assert int(shut.sum()) == math.floor(len(shut) * sparsity + 1e-6)
    assert all_scores[shut].max() < all_scores[~shut].min()
