"""Properties of movement pruning (methods/README.md, movement)."""

import math

import pytest
import torch

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.costs.parameters import count_sparsity
from bench.planning.job import Job
from bench.weights import targets
from bench.weights.patterns import holds, local
from methods.movement import Movement
from methods.shared.distill import kd_loss
from methods.shared.masks import pruned_count
from methods.shared.roles import feed_forward
from methods.shared.schedules import cubic
from methods.shared.score_masks import Gate, Masked
from tests import helpers, meta
from tests.helpers import run_cell
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
HYBRID = "block:16x16+neurons"
OUTPUTS = {
    "tiny-bert": "attention.output.dense",
    "tiny-gpt2": "attn.c_proj",
    "tiny-llama": "self_attn.o_proj",
}


def attached(model="tiny-bert", sparsity=0.5, pattern="unstructured", seed=7, **params):
    """An attached model whose scores are random."""
    found = helpers.attached(helpers.cell("movement", model, sparsity, pattern, **params))
    g = torch.Generator().manual_seed(seed)
    for kind in found[1].kinds:
        for gate in kind:
            gate.scores.data = 2 * torch.randn(gate.scores.shape, generator=g)
    return found


def stored(target):
    weight = target.module.parametrizations.weight.original.detach()
    return (weight.t() if target.transposed else weight).contiguous()


def scores(target):
    """(out, in) scores of a target, every unit's spread over its extent."""
    layer = target.module.parametrizations.weight[0]
    r, c = layer.unit
    rows, columns = target.module.parametrizations.weight.original.shape
    flat = layer.gate.scores.detach().view(rows // r, columns // c)
    spread = torch.kron(flat, torch.ones(r, c))
    return spread.t().contiguous() if target.transposed else spread


class Outputs:
    def __init__(self, loss, logits=None):
        self.loss, self.logits = loss, logits


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("unit", [(1, 1), (4, 8), (1, 24), (12, 1)])
def test_gradients_are_g_times_mask_and_g_times_weight(unit, transposed):
    g = torch.Generator().manual_seed(0)
    W, G = torch.randn(12, 24, generator=g), torch.randn(12, 24, generator=g)
    n = (12 // unit[0]) * (24 // unit[1])
    gate = Gate(n, soft=False, floor=0)
    gate.scores.data = torch.randn(n, generator=g)
    gate.set(0.5)
    layer = Masked(gate, unit, transposed)
    grid = (12 // unit[0], 24 // unit[1])
    flat = gate.scores.detach()
    keep = keep_by_sort(flat, n // 2)
    keep = keep.view(grid[::-1]).t() if transposed else keep.view(grid)
    M = torch.kron(keep.float().contiguous(), torch.ones(unit))

    weight = (W.t().contiguous() if transposed else W).clone().requires_grad_()
    out = layer(weight)
    out.backward(G.t() if transposed else G)
    assert torch.equal(out.t() if transposed else out, W * M)
    assert torch.equal(weight.grad.t() if transposed else weight.grad, G * M)
    expected = torch.stack([
        (G * W)[i : i + unit[0], j : j + unit[1]].sum()
        for i in range(0, 12, unit[0])
        for j in range(0, 24, unit[1])
    ])  # fmt: skip
    found = gate.scores.grad
    found = found.view(grid[::-1]).t().reshape(-1) if transposed else found
    assert torch.allclose(found, expected, atol=1e-5)


@every
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_hard_keeps_the_top_scores_and_merge_leaves_exactly_them(model, sparsity):
    sparse, method, ctx = attached(model, sparsity)
    method.step(sparse, 1.0)
    expected = {}
    for target in ctx.targets:
        k = pruned_count(stored(target).numel(), sparsity)
        keep = keep_by_sort(scores(target), k)  # no ties, so any order of the elements will do
        expected[target.name] = stored(target) * keep
    before = helpers.logits(sparse)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    for target in targets.prunable(sparse):
        n = target.weight.numel()
        assert torch.equal(target.weight, expected[target.name])
        assert int(torch.count_nonzero(target.weight)) == n - pruned_count(n, sparsity)


@every
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16", HYBRID])
def test_until_the_ramp_begins_the_forward_is_the_dense_models(model, mode, pattern):
    # Hard: v = 1. Soft: τ = 0 keeps all, whatever the scores.
    sparse, method, _ = attached(model, 0.9, pattern, mode=mode)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    for progress in (0.0, 0.1):
        method.step(sparse, progress)
        assert torch.equal(helpers.logits(sparse), helpers.logits(dense))
        assert method.strength == 0.0
    method.step(sparse, 0.3)
    assert not torch.equal(helpers.logits(sparse), helpers.logits(dense))


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_levels_follow_the_cubic_ramp_in_units_of_the_warm_up(mode):
    model, method, _ = attached("tiny-bert", 0.9, mode=mode)
    final = 0.9 if mode == "hard" else 0.1
    for t in range(101):
        method.step(model, t / 100)
        # One warm-up of 10 % at the start, two at the end.
        expected = cubic(t / 100, 0.1, 0.8, 0.0, final)
        assert method.kinds[0][0].level == pytest.approx(expected, abs=1e-12)
        penalty = 400 * expected / final if mode == "soft" else 0.0
        assert method.strength == pytest.approx(penalty)


def test_soft_cuts_where_sigma_falls_to_tau():
    sparse, method, ctx = attached(mode="soft", pattern="unstructured")
    method.step(sparse, 1.0)
    helpers.logits(sparse)
    for target in ctx.targets:
        assert torch.equal(target.weight != 0, torch.sigmoid(scores(target)) > 0.1)
    assert not method.promises_sparsity


@pytest.mark.parametrize("n", [100, 199, 200, 1000])
def test_soft_keeps_the_best_scores_whatever_the_threshold(n):
    g = torch.Generator().manual_seed(0)
    least = int(0.005 * n) + 1
    for low in (0, 1, least, least + 3):
        values = torch.full((n,), -5.0) - torch.rand(n, generator=g)
        values[torch.randperm(n, generator=g)[:low]] = 3.0
        gate = Gate(n, soft=True, floor=least)
        gate.scores.data = values
        gate.set(0.1)
        above = torch.sigmoid(values) > 0.1
        expected = above if int(above.sum()) >= least else keep_by_sort(values, n - least)
        assert torch.equal(gate.keep().bool(), expected)
    gate.scores.data = torch.full((n,), -5.0)  # all tied: the rule of the released code keeps none
    gate.set(0.1)
    assert int(gate.keep().sum()) == least


def test_the_penalty_is_a_mean_over_kinds_of_layers_and_adds_its_gradient():
    sparse, method, _ = attached(pattern=HYBRID, mode="soft", penalty=30.0)
    method.step(sparse, 1.0)
    attention, neurons = method.kinds
    assert (len(attention), len(neurons)) == (2 * 4, 2)
    means = [sum(torch.sigmoid(g.scores).mean() for g in kind) / len(kind) for kind in method.kinds]
    expected = 0.3 + 30 * sum(means) / 2
    loss = method.loss(sparse, {}, Outputs(torch.tensor(0.3)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    s = neurons[0].scores
    slope = torch.sigmoid(s) * (1 - torch.sigmoid(s)) / s.numel() / len(neurons) / 2
    assert torch.allclose(s.grad, 30 * slope.detach(), atol=1e-6)


@every
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_block_masks_are_constant_within_blocks(model, mode):
    sparse, method, _ = attached(model, 0.5, "block:16x32", mode=mode)
    method.step(sparse, 1.0)
    method.finish(sparse)
    for target in targets.prunable(sparse):
        alive = target.weight != 0
        if target.name.endswith(OUTPUTS[model]):
            alive = alive.t()
        rows, columns = alive.shape
        kept = 0
        for i in range(0, rows, 16):
            for j in range(0, columns, 32):
                block = alive[i : i + 16, j : j + 32]
                assert block.all() or not block.any()
                kept += bool(block.all())
        blocks = rows * columns // 512
        if mode == "hard":
            assert kept == blocks - pruned_count(blocks, 0.5)


@every
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_hybrid_prunes_whole_neurons_with_their_bias(model, mode):
    sparse, method, _ = attached(model, 0.5, HYBRID, mode=mode)
    g = torch.Generator().manual_seed(2)
    for name, parameter in sparse.named_parameters():
        if "bias" in name:
            parameter.data = torch.rand(parameter.shape, generator=g) + 0.5
    method.step(sparse, 1.0)
    before = helpers.logits(sparse)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    for ffn in feed_forward(targets.prunable(sparse)):
        dead = ~(ffn.out.weight != 0).any(dim=0)
        assert 0 < int(dead.sum()) < dead.numel()
        if mode == "hard":
            assert int(dead.sum()) == pruned_count(dead.numel(), 0.5)
        assert bool((ffn.out.weight != 0)[:, ~dead].all())
        for target in ffn.ins:
            assert torch.equal(~(target.weight != 0).any(dim=1), dead)
            assert bool((target.weight != 0)[~dead].all())
            if getattr(target.module, "bias", None) is not None:
                assert torch.equal(target.module.bias == 0, dead)
    paired = {t.name for f in feed_forward(targets.prunable(sparse)) for t in (*f.ins, f.out)}
    for target in targets.prunable(sparse):
        assert holds(target.weight, Pattern(HYBRID))
        if target.name not in paired:
            assert holds(target.weight, Pattern("block:16x16"))


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
@pytest.mark.parametrize("bias_mask", [True, False])
def test_bias_mask_zeroes_the_bias_of_pruned_rows_alone(model, bias_mask):
    sparse, method, ctx = attached(model, 0.5, bias_mask=bias_mask)
    for name, parameter in sparse.named_parameters():
        if "bias" in name:
            parameter.data.fill_(0.7)
    target = ctx.targets[0]
    layer = target.module.parametrizations.weight[0]
    dead = [3, 40]
    values = scores(target)
    values[dead] = -99.0
    layer.gate.scores.data = (values.t() if target.transposed else values).reshape(-1)
    method.step(sparse, 1.0)
    if bias_mask:
        original = target.module.parametrizations.bias.original
        target.module.bias.sum().backward()
        assert (original.grad == 0).nonzero().flatten().tolist() == dead
    before = helpers.logits(sparse)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    found = (target.module.bias == 0).nonzero().flatten().tolist()
    assert found == (dead if bias_mask else [])
    assert isinstance(target.module.bias, torch.nn.Parameter)


def test_pruned_weights_get_no_gradient_but_their_scores_do():
    sparse, method, ctx = attached("tiny-bert", 0.8)
    method.step(sparse, 1.0)
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    sparse(input_ids=ids, labels=torch.tensor([0, 1, 1])).loss.backward()
    target = ctx.targets[0]
    weight = target.module.parametrizations.weight
    pruned = target.module.weight == 0
    assert not weight.original.grad[pruned].any()
    assert weight[0].gate.scores.grad.view(pruned.shape)[pruned].any()


def test_a_mask_stands_for_one_update_and_then_follows_the_scores():
    sparse, method, ctx = attached("tiny-bert", 0.5)
    method.step(sparse, 0.9)
    before = ctx.targets[0].weight
    gate = method.kinds[0][0]
    gate.scores.data = -gate.scores.data
    assert torch.equal(ctx.targets[0].weight, before)
    method.step(sparse, 0.95)
    assert torch.equal(ctx.targets[0].weight != 0, before == 0)


def test_scores_have_a_group_of_their_own_without_decay():
    model, method, _ = attached(weight_decay=0.3)
    *rest, last = method.param_groups(model)  # tables, vectors, hidden matrices; scores
    ids = {id(g.scores) for kind in method.kinds for g in kind}
    assert {id(p) for p in last["params"]} == ids
    assert last["weight_decay"] == 0.0
    assert last["lr"] == method.params.score_lr
    assert [g["lr"] / method.params.lr for g in rest] == [1.0, 1.0, 768 / 64]
    others = [id(p) for group in rest for p in group["params"]]
    assert not ids & set(others)
    assert len(others) == len(set(others)) == len(list(model.parameters())) - len(ids)
    assert [g["weight_decay"] for g in rest] == [0.3, 0.0, 0.3]


@pytest.mark.parametrize(("freeze", "total"), [(False, 194_418_434), (True, 170_581_250)])
def test_bert_base_counts_are_the_two_codes(freeze, total):
    method = Movement(Movement.Params(freeze_embeddings=freeze))
    counted = meta.trainable(method, meta.model("bert"))
    assert counted.body + counted.head == total


def test_hybrid_has_64512_scores_on_bert_base():
    counted = meta.trainable(Movement(), meta.model("bert"), "block:32x32+neurons")
    assert counted.body + counted.head - 109_483_778 == 64_512


def test_frozen_embeddings_are_those_before_the_blocks():
    for kind, size in (("bert", 23_837_184), ("gpt2", 38_597_376 + 786_432)):
        model = meta.model(kind)
        meta.trainable(Movement(Movement.Params(freeze_embeddings=True)), model)
        assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == size


def test_distillation_mixes_the_teachers_loss_in_and_needs_the_dense_cell():
    steps = {"budget__steps": 4, "budget__batch": 4}
    cell = helpers.cell("movement", distill=0.9, **steps)
    assert Job.resolve(cell).needs_dense
    assert not Job.resolve(helpers.cell("movement", **steps)).needs_dense
    run_cell(cell.dense, lambda *_: None)
    model, method, ctx = helpers.attached(cell)
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "labels": torch.tensor([0, 1, 1])}
    model.eval()
    outputs = model(**inputs)
    teacher = ctx.teacher()(input_ids=ids).logits
    expected = 0.1 * outputs.loss + 0.9 * kd_loss(outputs.logits, teacher, None, 2.0)
    assert torch.allclose(method.loss(model, inputs, outputs), expected)
    assert not torch.allclose(expected, outputs.loss, rtol=1e-2)
    assert not torch.equal(teacher, outputs.logits)
    assert math.isfinite(run_cell(cell, lambda *_: None).scores.value)


@pytest.mark.parametrize(
    ("pattern", "mode"),
    [("block:16x16", "hard"), (HYBRID, "hard"), (HYBRID, "soft"), ("unstructured", "soft")],
)
def test_every_kind_of_cell_keeps_its_contract(pattern, mode):
    more = {"budget__steps": 12, "budget__batch": 4, "mode": mode, "score_lr": 4.8}
    cell = helpers.cell("movement", "tiny-bert", 0.5, pattern, **more)
    record = run_cell(cell, lambda *_: None)
    assert record.sparsity.pattern_ok
    assert 0 < record.sparsity.overall < 1
    if mode == "hard":
        assert record.sparsity.overall == pytest.approx(0.5, abs=1e-6)


def test_patterns_and_schedules_that_cannot_be_are_refused():
    assert Pattern("block:32x32+neurons").made_by(Movement.patterns)
    assert not Pattern("neurons").made_by(Movement.patterns)
    with pytest.raises(BenchError, match="blocks of 7×16 do not tile .*, which is 64×64"):
        attached(pattern="block:7x16")
    with pytest.raises(BenchError, match="blocks of 0×4 do not tile"):
        attached(pattern="block:0x4")
    with pytest.raises(BenchError, match=r"from 0\.5 to 0 of the steps"):
        attached(warmup=0.5)


def test_holds_knows_blocks_and_neurons():
    weight = torch.ones(8, 8)
    weight[[0, 1, 3]] = 0.0
    assert holds(weight, Pattern("block:4x4+neurons"))
    assert holds(weight.t(), Pattern("block:4x4+neurons"))
    assert not holds(weight, Pattern("block:4x4"))
    weight[5, 1:] = 0.0
    assert not holds(weight, Pattern("block:4x4+neurons"))


@every
@pytest.mark.parametrize("pattern", ["block:8x16", "block:4x32", "block:8x16+neurons"])
def test_blocks_of_the_attention_output_are_transposed(model, pattern):
    sparse, method, _ = attached(model, 0.5, pattern)
    r, c = Pattern(pattern).block
    method.step(sparse, 1.0)
    method.finish(sparse)
    paired = {t.name for f in feed_forward(targets.prunable(sparse)) for t in (*f.ins, f.out)}
    seen = 0
    for target in targets.prunable(sparse):
        if "neurons" in pattern and target.name in paired:
            continue
        output = target.name.endswith(OUTPUTS[model])
        rows, columns = (c, r) if output else (r, c)
        tiles = (target.weight != 0).unfold(0, rows, rows).unfold(1, columns, columns)
        kept = tiles.float().mean(dim=(-1, -2))
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        assert int((kept == 0).sum()) == kept.numel() // 2
        # In the other orientation the tiles are no tiles: the test can fail.
        turned = (target.weight != 0).unfold(0, columns, columns).unfold(1, rows, rows)
        assert not set(turned.float().mean(dim=(-1, -2)).unique().tolist()) <= {0.0, 1.0}
        seen += output
    assert seen == 2
    assert count_sparsity(sparse, Pattern(pattern)).pattern_ok
    assert not count_sparsity(sparse, Pattern(f"block:{c}x{r}")).pattern_ok


@pytest.mark.parametrize(
    ("name", "turned"),
    [
        ("bert.encoder.layer.0.attention.output.dense", True),
        ("bert.encoder.layer.0.output.dense", False),
        ("transformer.h.0.attn.c_proj", True),
        ("transformer.h.0.mlp.c_proj", False),
        ("model.layers.1.self_attn.o_proj", True),
        ("model.decoder.layers.1.self_attn.out_proj", True),
        ("transformer.layer.0.attention.out_lin", True),
        ("transformer.h.0.self_attention.dense", True),
        ("gpt_neox.layers.0.attention.dense", True),
        ("encoder.block.0.layer.0.SelfAttention.o", True),
        ("backbone.layers.0.mixer.out_proj", False),
    ],
)
def test_attention_outputs_are_known_by_name(name, turned):
    found = local(Pattern("block:4x8"), targets.Target(name, torch.nn.Linear(8, 8)))
    assert found.block == ((8, 4) if turned else (4, 8))
