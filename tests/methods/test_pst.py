"""Properties and counts of PST (methods/README.md, pst)."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.api import BenchError
from bench.costs.parameters import count_trainable
from bench.planning.job import Job
from bench.weights import targets
from methods.pst import PST, LowRankImportance
from methods.shared.masked_update import MaskedUpdate
from methods.shared.masks import pruned_count
from methods.shared.schedules import cubic
from tests import helpers
from tests.oracles.topk import keep_by_sort, pst_weight

BERT_BASE = 2_820_096
MOVEMENT_BERT_BASE = 194_418_434


def factors(o, i, r, r2=None, seed=0):
    r2 = r2 or r
    g = torch.Generator().manual_seed(seed)
    shapes = {"W": (o, i), "U": (o, r), "V": (r, i), "A": (o, r2), "B": (r2, i)}
    shapes |= {"R": (o, 1), "C": (1, i)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("r1", "r2"), [(3, 3), (2, 5), (6, 1)])
def test_gradients_equal_autograd_through_the_equations(detach, sparsity, r1, r2):
    o, i = 13, 22
    scales = (0.7, 1.3, 0.4)
    parts = factors(o, i, r1, r2)
    G = torch.randn(o, i, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    k = pruned_count(o * i, sparsity)

    ours = {n: t[None].clone().requires_grad_(n != "W") for n, t in parts.items()}
    out = MaskedUpdate.apply(*ours.values(), scales, sparsity, detach, torch.float64)
    out.backward(G[None])

    torch.set_default_dtype(torch.float64)
    try:
        theirs = {n: t.clone().requires_grad_(n != "W") for n, t in parts.items()}
        expected = pst_weight(*theirs.values(), k, *scales, detach)
        expected.backward(G)
    finally:
        torch.set_default_dtype(torch.float32)

    assert torch.allclose(out[0], expected, atol=1e-12)
    for name in "UVABRC":
        assert torch.allclose(ours[name].grad[0], theirs[name].grad, atol=1e-10), name


def test_autocast_moves_no_mask_and_rounds_the_rest():
    o, i = 96, 64
    parts = {n: t.float() for n, t in factors(o, i, 8).items()}
    G = torch.randn(o, i, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        leaves = {n: t[None].clone().requires_grad_(n != "W") for n, t in parts.items()}
        out = MaskedUpdate.apply(*leaves.values(), (1.0, 1.0, 1.0), 0.7, False, dtype)
        assert out.dtype == dtype
        out.backward(G[None].to(dtype))
        found[dtype] = (out, [leaves[n].grad for n in "UVABRC"])
    (wide, full), (narrow, half) = found.values()
    assert torch.equal(narrow, wide.bfloat16())
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() <= 1e-2 * a.norm()


def test_weight_gradient_is_g_times_mask_plus_magnitude():
    # ∂L/∂Ŵ = G⊙(M + |Ŵ|), read off V's gradient with U = I.
    parts = factors(6, 8, 6)
    parts["U"] = torch.eye(6, dtype=torch.float64)
    parts["V"].zero_()
    G = torch.randn(6, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    V = parts["V"][None].clone().requires_grad_()
    rest = [parts[n][None] for n in "ABRC"]
    out = MaskedUpdate.apply(
        parts["W"][None], parts["U"][None], V, *rest, (1.0, 0.0, 0.0), 0.5, False, torch.float64
    )
    out.backward(G[None])
    mask = keep_by_sort(parts["W"].abs(), 24).double()
    assert torch.allclose(V.grad[0], G * (mask + parts["W"].abs()))


def test_without_importance_the_mask_is_magnitude_of_the_updated_weight():
    parts = {n: t.float()[None] for n, t in factors(20, 30, 4).items()}
    out = MaskedUpdate.apply(*parts.values(), (1.0, 0.0, 0.0), 0.6, False, torch.float64)
    updated = (parts["W"] + parts["U"] @ parts["V"])[0]
    assert torch.equal(out[0] != 0, keep_by_sort(updated.abs(), 360))


def test_a_constant_added_to_all_rows_changes_no_mask():
    parts = {n: t.float()[None] for n, t in factors(20, 30, 4).items()}
    before = MaskedUpdate.apply(*parts.values(), (1.0, 1.0, 1.0), 0.6, False, torch.float64) != 0
    parts["R"] = parts["R"] + 4.0  # a power of two: no rounding moves a tie
    after = MaskedUpdate.apply(*parts.values(), (1.0, 1.0, 1.0), 0.6, False, torch.float64) != 0
    assert torch.equal(before, after)


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_at_the_start_the_model_computes_what_the_dense_one_does(model):
    sparse, method, _ = helpers.attached(helpers.cell("pst", model, 0.9))
    method.step(sparse, 0.0)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.allclose(helpers.logits(sparse), helpers.logits(dense), atol=1e-6)


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_merge_equals_unmerged_with_exact_zeros(model):
    sparse, method, ctx = helpers.attached(helpers.cell("pst", model, 0.7))
    g = torch.Generator().manual_seed(1)
    for layer in method.layers:
        for p in layer.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=g)
    method.step(sparse, 1.0)
    before = helpers.logits(sparse)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    for target in ctx.targets:
        n = target.weight.numel() // target.parts
        assert helpers.zeros(sparse)[target.name] == target.parts * pruned_count(n, 0.7)


def test_linear_and_conv1d_make_the_same_mask():
    linear = torch.nn.Linear(12, 36)
    conv = type("C", (), {})()
    conv.weight = torch.nn.Parameter(linear.weight.detach().t().clone())
    outputs = []
    for module, transposed in ((linear, False), (conv, True)):
        target = _FakeTarget(module, transposed)
        layer = LowRankImportance(target, PST.Params(), torch.Generator().manual_seed(5))
        layer.sparsity = 0.8
        layer.B.data += 0.1
        out = layer(module.weight)
        outputs.append(out.t() if transposed else out)
    assert torch.equal(*outputs)


class _FakeTarget:
    def __init__(self, module, transposed):
        self.module, self.transposed, self.parts, self.shape = module, transposed, 3, (36, 12)


def test_sparsity_follows_the_cubic_ramp_over_training():
    model, method, _ = helpers.attached(helpers.cell("pst", sparsity=0.9))
    seen = []
    for t in range(101):
        method.step(model, t / 100)
        seen.append(method.layers[0].sparsity)
    assert seen == [cubic(t / 100, 0.1, 0.7, 0.0, 0.9) for t in range(101)]
    assert seen[0] == 0.0
    assert seen[-1] == 0.9


def test_compat_reference_leaves_the_head_untrained():
    model, method, _ = helpers.attached(helpers.cell("pst", compat="reference"))
    assert count_trainable(model, method.param_groups(model)).head == 0


def test_holds_without_a_ramp_between_them_are_refused():
    with pytest.raises(BenchError, match=r"hold 0\.5 and cool 0\.5: their sum must be below 1"):
        Job.resolve(helpers.cell("pst", hold=0.5, cool=0.5))


def count(model, params=None):
    """Trainable elements that PST adds to a model on the meta device."""
    params = params or PST.Params()
    with torch.device("meta"):
        layers = [LowRankImportance(t, params, None) for t in targets.prunable(model)]
    return sum(p.numel() for layer in layers for p in layer.parameters())


def meta(kind, **config):
    with torch.device("meta"):
        auto = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSequenceClassification
        return auto.from_config(AutoConfig.for_model(kind, **config))


GPT2_MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}


def test_bert_base_count_is_the_papers():
    assert count(meta("bert")) == BERT_BASE
    assert round(100 * BERT_BASE / MOVEMENT_BERT_BASE, 1) == 1.5


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        ({}, True, 2_820_096),
        ({}, False, 2_506_752),
        (GPT2_MEDIUM, True, 7_520_256),
        (GPT2_MEDIUM, False, 6_684_672),
    ],
)
def test_gpt2_counts(config, split, expected):
    assert count(meta("gpt2", **config), PST.Params(split_qkv=split)) == expected


@pytest.mark.parametrize(("r1", "r2"), [(4, 16), (16, 4)])
def test_both_ranks_are_parameters(r1, r2):
    model, method, ctx = helpers.attached(helpers.cell("pst", rank=r1, score_rank=r2))
    for target, layer in zip(ctx.targets, method.layers, strict=True):
        o, i = target.shape
        shapes = {n: tuple(p.shape[1:]) for n, p in layer.named_parameters()}
        assert shapes == {"U": (o, r1), "V": (r1, i), "A": (o, r2), "B": (r2, i),
                          "R": (o, 1), "C": (1, i)}  # fmt: skip
    plain = helpers.attached(helpers.cell("dense"))[0]
    held = count_trainable(model, method.param_groups(model)).body
    assert (
        held == method.closed_form(plain) == sum((r1 + r2 + 1) * sum(t.shape) for t in ctx.targets)
    )


def adamw(p, grads, lr, eps):
    """AdamW without decay, written out: β = (0.9, 0.999)."""
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + eps)
    return p


def test_epsilon_of_adamw_is_the_references():
    # Gradients of 1e-6: with ε = 1e-6 a first step is half of lr, with 1e-8 all of it.
    p = torch.nn.Parameter(torch.ones(50))
    g = torch.Generator().manual_seed(0)
    grads = [1e-6 * torch.randn(50, generator=g) for _ in range(5)]
    optimizer = PST().optimizer([{"params": [p], "lr": 1e-3, "weight_decay": 0.0}])
    for grad in grads:
        p.grad = grad
        optimizer.step()
    moved = {eps: adamw(torch.ones(50), grads, 1e-3, eps) - 1 for eps in (1e-6, 1e-8)}
    assert torch.allclose(p.detach() - 1, moved[1e-6], rtol=1e-3, atol=1e-7)
    assert (moved[1e-6] - moved[1e-8]).abs().max() > 1e-4
    assert PST.Params().eps == 1e-6


@pytest.mark.parametrize(
    ("model", "task", "warmup", "clip"),
    [("tiny-bert", "tiny/reviews", 0.0, 1.0), ("tiny-gpt2", "tiny/nlg", 0.02, 0.0)],
)
def test_language_models_warm_up_and_are_not_clipped(model, task, warmup, clip):
    _, method, _ = helpers.attached(helpers.cell("pst", model, task=task))
    assert method.max_grad_norm == clip
    assert (method.params.warmup, method.params.clip) == (warmup, clip)
    if warmup:
        assert [method.lr_factor(x * warmup) for x in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    else:
        assert [method.lr_factor(x) for x in (0, 0.25, 1)] == [1.0, 0.75, 0.0]
    told = helpers.cell("pst", model, task=task, warmup=0.1, clip=3.0)
    _, method, _ = helpers.attached(told)
    assert (method.max_grad_norm, method.lr_factor(0.05)) == (3.0, 0.5)


def test_the_warm_up_is_the_papers_500_of_26289_updates():
    assert round(500 / 26_289, 2) == 0.02
