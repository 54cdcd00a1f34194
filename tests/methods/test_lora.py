"""Properties of LoRA (methods/README.md, lora)."""

import pytest
import torch

from bench.weights import targets
from methods.lora import LoRA
from methods.shared.roles import roles
from tests import helpers, meta

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)


def perturbed(model, **more):
    """An attached model whose B is no longer zero, its method, and the weights from before."""
    sparse, method, ctx = helpers.attached(helpers.cell("lora", model, **more))
    before = {t.name: t.module.parametrizations.weight.original.detach().clone()
              for t in ctx.targets if hasattr(t.module, "parametrizations")}  # fmt: skip
    g = torch.Generator().manual_seed(1)
    for layer in method.layers:
        for B in layer.B:
            B.data += 0.1 * torch.randn(B.shape, generator=g)
    return sparse, method, ctx, before


@every
def test_at_the_start_the_logits_are_the_base_models(model):
    sparse, _, _ = helpers.attached(helpers.cell("lora", model))
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.allclose(helpers.logits(sparse), helpers.logits(dense), atol=1e-6)


@every
def test_at_the_start_only_b_has_a_gradient(model):
    sparse, method, _ = helpers.attached(helpers.cell("lora", model))
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    sparse(input_ids=ids, labels=torch.tensor([0, 1, 1])).loss.backward()
    for layer in method.layers:
        for A, B in zip(layer.A, layer.B, strict=True):
            assert not A.grad.any()
            assert B.grad.any()
    held = {id(p) for g in method.param_groups(sparse) for p in g["params"]}
    assert all(p.grad is None for p in sparse.parameters() if id(p) not in held)


@every
def test_a_and_b_have_the_papers_initial_values(model):
    _, method, _ = helpers.attached(helpers.cell("lora", model))
    bound = 64**-0.5
    for layer in method.layers:
        for A, B in zip(layer.A, layer.B, strict=True):
            assert not B.any()
            assert 0.95 * bound < A.abs().max() <= bound
            # Var U(−b, b) = b²/3.
            assert A.var().item() == pytest.approx(bound**2 / 3, rel=0.25)


@every
@pytest.mark.parametrize("where", ["qv", "all"])
def test_merge_equals_unmerged_and_is_w_plus_scaled_ba(model, where):
    sparse, method, ctx, before = perturbed(model, where=where)
    logits = helpers.logits(sparse)
    expected = {}
    for target, layer in zip([t for t in ctx.targets if t.name in before], method.layers,
                             strict=True):  # fmt: skip
        stored = before[target.name]
        weight = (stored.t() if target.transposed else stored).clone()
        for rows, A, B in zip(layer.rows, layer.A, layer.B, strict=True):
            weight[rows] += (16.0 / 8) * B @ A
        expected[target.name] = weight.detach()
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), logits, atol=1e-5)
    for target in targets.prunable(sparse):
        if target.name in expected:
            assert torch.allclose(target.weight, expected[target.name], atol=1e-6), target.name


@every
def test_the_update_has_rank_r_in_q_and_v_and_is_zero_elsewhere(model):
    sparse, method, _, _ = perturbed(model, rank=3)
    start, _, _ = helpers.attached(helpers.cell("dense", model))
    method.finish(sparse)
    for target, old in zip(targets.prunable(sparse), targets.prunable(start), strict=True):
        change = target.weight - old.weight
        parts = roles(target)
        for role in "qv":
            if role in parts:
                singular = torch.linalg.svdvals(change[parts[role]].double())
                assert singular[2] > 1e-3
                assert singular[3] < 1e-5
        if not {"q", "v"} & set(parts):
            assert not change.any()


def test_the_key_slice_of_a_fused_matrix_does_not_move():
    sparse, method, _, before = perturbed("tiny-gpt2")
    method.finish(sparse)
    fused = [t for t in targets.prunable(sparse) if t.parts == 3]
    assert len(fused) == 2
    for target in fused:
        rows = roles(target)
        old = before[target.name].t()
        assert torch.equal(target.weight[rows["k"]], old[rows["k"]])
        assert not torch.equal(target.weight[rows["q"]], old[rows["q"]])
        assert not torch.equal(target.weight[rows["v"]], old[rows["v"]])


@pytest.mark.parametrize(
    ("kind", "config", "params", "body"),
    [
        ("bert", {}, {"rank": 8}, 294_912),
        ("bert", {}, {"rank": 16}, 589_824),
        ("gpt2", meta.GPT2_MEDIUM, {"rank": 4}, 393_216),
        # Σ(o + i) = 165,888 over all matrices; c_attn counts as three.
        ("bert", {}, {"rank": 8, "where": "all"}, 8 * 165_888),
        ("gpt2", {}, {"rank": 8, "where": "all"}, 8 * 165_888),
    ],
)
def test_counts(kind, config, params, body):
    counted = meta.trainable(LoRA(LoRA.Params(**params)), meta.model(kind, **config), "dense")
    assert counted.body == body


def test_robertas_count_with_its_head_is_the_readmes():
    counted = meta.trainable(LoRA(), meta.model("roberta"), "dense")
    assert counted.body + counted.head == 887_042
