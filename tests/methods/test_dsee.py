"""Properties and counts of DSEE (methods/README.md, dsee)."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bench.api import BenchError, Budget, Context
from bench.costs.parameters import count_trainable
from bench.planning import registry
from bench.weights import slicing, targets
from methods.dsee import DSEE
from methods.shared import sparse_support
from methods.shared.low_rank_sparse import AddUpdate, Update
from methods.shared.update_parts import base
from tests import helpers
from tests.helpers import fit_cell
from tests.oracles import bilateral
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
THIRD = 1 / 3


def attached(model="tiny-bert", sparsity=0.5, pattern="unstructured", **overrides):
    overrides = {"omega": "random"} | overrides
    return helpers.attached(helpers.cell("dsee", model, sparsity, pattern, **overrides))


def trained(method, seed=3):
    """Gives the update values, as the first phase would."""
    g = torch.Generator().manual_seed(seed)
    for part in method.parts:
        if part.update:
            part.update.B.data = 0.1 * torch.randn(part.update.B.shape, generator=g)
            part.update.theta.data = torch.randn(part.update.theta.shape, generator=g)


def updates(method):
    return [part for part in method.parts if part.update]


def bases(method):
    return {t.name: base(t).clone() for t in method.targets}


def learn(model, method, steps=6, first=0):
    """Real updates on the task's loss, with the hooks that the harness calls."""
    optimizer = method.optimizer(method.param_groups(model))
    ids = torch.randint(5, 200, (8, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    start = [group["lr"] for group in optimizer.param_groups]
    for t in range(first, steps):
        method.step(model, t / steps)
        for group, lr in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = lr * method.lr_factor(t / steps)
        optimizer.zero_grad()
        method.loss(model, inputs, model(**inputs)).backward()
        optimizer.step()
    return optimizer


# Ω


@pytest.mark.parametrize("how", ["bilateral", "svd", "magnitude", "random"])
@pytest.mark.parametrize("shape", [(64, 64), (32, 64), (16, 24), (80, 48)])
@pytest.mark.parametrize("n", [0, 1, 64])
def test_omega_has_n_distinct_places_in_small_matrices_too(how, shape, n):
    g = torch.Generator().manual_seed(0)
    omega = sparse_support.places(0.02 * torch.randn(shape, generator=g), n, how, g)
    assert omega.shape == (2, n)
    assert len(set(map(tuple, omega.t().tolist()))) == n
    assert bool((omega < torch.tensor(shape)[:, None]).all())


def test_omega_of_equal_weights_still_has_n_places():
    assert sparse_support.places(torch.zeros(64, 64), 16, "bilateral", None).shape == (2, 16)


@pytest.mark.parametrize("rounds", [5, 100])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48)])
def test_bilateral_residual_equals_the_one_with_full_qr(shape, rounds):
    g = torch.Generator().manual_seed(0)
    weight = 0.04 * torch.randn(shape, generator=g, dtype=torch.float64)
    start = torch.randn(1, shape[1], generator=g, dtype=torch.float64)
    expected = bilateral.residual(weight, start, rounds, min(shape) // 2)
    found = sparse_support.residual(weight, start, rounds)
    assert torch.allclose(found, expected, atol=1e-10)
    assert int((found.abs() >= 0.01).sum()) > 64  # the reference's collapses to nothing here


def test_last_rank_is_the_references_from_512_on_and_half_below():
    assert sparse_support.last_rank((768, 768)) == 496 == 1 + 5 * 99
    assert sparse_support.last_rank((512, 2048)) == 496
    assert sparse_support.last_rank((1024, 511)) == 255
    assert sparse_support.last_rank((64, 64)) == 32


def test_the_limit_finds_planted_places_behind_a_spectral_gap():
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(64, 32, generator=g)).Q for _ in range(2))
    weight = 100 * U @ V.t()
    planted = torch.randperm(64 * 64, generator=g)[:5]
    weight.view(-1)[planted] += 1.0
    rows, columns = sparse_support.places(weight, 5, "svd", g)
    assert set((rows * 64 + columns).tolist()) == set(planted.tolist())


def test_omega_by_magnitude_is_the_largest_and_by_chance_is_the_generators():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    rows, columns = sparse_support.places(weight, 50, "magnitude", None)
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[rows, columns] = True
    assert torch.equal(mask, keep_by_sort(weight.abs(), 550))
    drawn = [
        sparse_support.places(weight, 50, "random", torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_impossible_omegas_are_refused():
    with pytest.raises(BenchError, match="does not fit"):
        sparse_support.places(torch.zeros(4, 4), 17, "random", None)
    with pytest.raises(BenchError, match="omega is"):
        sparse_support.places(torch.zeros(4, 4), 1, "omp", None)


# The update


@pytest.mark.parametrize("transposed", [False, True])
def test_update_and_its_gradients_equal_autograd_through_the_equations(transposed):
    g = torch.Generator().manual_seed(0)
    rows, scale = slice(5, 11), 2.0
    shapes = ((15, 7), (3, 7), (6, 3), (4,))
    W, A, B, theta = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    omega = torch.tensor([[0, 2, 2, 5], [6, 0, 3, 1]])
    G = torch.randn(15, 7, generator=g, dtype=torch.float64)

    theirs = [t.clone().requires_grad_() for t in (W, A, B, theta)]
    S2 = torch.zeros(6, 7, dtype=torch.float64).index_put(tuple(omega), theirs[3])
    delta = torch.zeros(15, 7, dtype=torch.float64)
    delta = torch.cat([delta[:5], scale * (theirs[2] @ theirs[1] + S2), delta[11:]])
    expected = theirs[0] + delta
    expected.backward(G)

    flip = (lambda t: t.t().contiguous()) if transposed else (lambda t: t)
    ours = [t.clone().requires_grad_() for t in (flip(W), A, B, theta)]
    out = AddUpdate.apply(*ours, omega, (rows, scale, transposed))
    out.backward(flip(G))
    assert torch.allclose(flip(out) if transposed else out, expected, atol=1e-12)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-12)
    assert torch.allclose(flip(ours[0].grad) if transposed else ours[0].grad, theirs[0].grad)


@every
def test_without_omega_it_is_lora_of_q_and_v_on_masked_weights(model):
    sparse, method, _ = attached(model, support=0, rank=4)
    plain, _, _ = helpers.attached(helpers.cell("dense", model))
    trained(method)
    method.step(sparse, 0.5)
    for target in targets.prunable(plain):
        target.write(bases(method)[target.name])
    modules = dict(plain.named_modules())
    for part in updates(method):

        def lora(module, inputs, output, part=part):
            A, B = part.update.A, part.update.B
            out = output.clone()
            out[..., part.rows] += 32 / 4 * (inputs[0] @ A.t()) @ B.t()
            return out

        modules[part.target.name].register_forward_hook(lora)
    assert torch.allclose(helpers.logits(sparse), helpers.logits(plain), atol=1e-5)


@every
def test_query_and_value_are_updated_and_the_key_is_not(model):
    _, method, ctx = attached(model)
    trained(method)
    found = {}
    for target in ctx.targets:
        changed = (target.weight != base(target)).any(dim=1)
        if changed.any():
            found[target.name.rpartition(".")[2]] = changed
    expected = {
        "tiny-bert": {"query", "value"},
        "tiny-gpt2": {"c_attn"},
        "tiny-llama": {"q_proj", "v_proj"},
    }
    assert set(found) == expected[model]
    if model == "tiny-gpt2":
        q, k, v = found["c_attn"].chunk(3)
        assert q.all()
        assert not k.any()
        assert v.all()


@every
@pytest.mark.parametrize("pattern", DSEE.patterns)
def test_at_sparsity_zero_nothing_changes_at_the_start(model, pattern):
    sparse, method, _ = attached(model, 0.0, pattern)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    before = helpers.logits(dense)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-6)
    method.step(sparse, 0.5)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-6)


# S1, unstructured


@every
def test_two_global_pools_with_exact_counts_and_the_smallest_scores(model):
    sparse, method, ctx = attached(model, 0.37)
    trained(method)
    before = bases(method)
    deltas = {id(part.update): part.update.delta() for part in updates(method)}
    method.step(sparse, THIRD)
    for updated in (False, True):
        parts = [part for part in method.parts if (part.update is not None) == updated]
        score, zero = [], []
        for part in parts:
            size = deltas[id(part.update)] if updated else before[part.target.name][part.rows]
            score.append(size.abs().flatten())
            zero.append((base(part.target)[part.rows] == 0).flatten())
        score, zero = torch.cat(score), torch.cat(zero)
        assert int(zero.sum()) == round(0.37 * zero.numel())
        assert score[zero].max() <= score[~zero].min()
    for target in ctx.targets:
        left = base(target)
        assert torch.equal(left[left != 0], before[target.name][left != 0])


def test_the_key_slice_of_gpt2_competes_with_the_other_matrices():
    _, method, _ = attached("tiny-gpt2")
    plain = [part for part in method.parts if part.update is None]
    slices = [p.rows for p in plain if p.target.name.endswith("c_attn")]
    assert slices == [slice(64, 128)] * 2
    assert [p.rows for p in updates(method)] == [slice(0, 64), slice(128, 192)] * 2


@every
def test_training_after_s1_leaves_s1_and_the_weights_alone(model):
    sparse, method, _ = attached(model)
    trained(method)
    method.step(sparse, THIRD)
    before, moved = bases(method), [p.update.B.clone() for p in updates(method)]
    learn(sparse, method, steps=9, first=3)
    method.step(sparse, 1.0)
    after = bases(method)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(b, p.update.B) for b, p in zip(moved, updates(method), strict=True))


@every
def test_merged_equals_unmerged_and_only_q_and_v_are_dense(model):
    sparse, method, _ = attached(model, 0.6)
    trained(method)
    method.step(sparse, THIRD)
    before, stored = helpers.logits(sparse), bases(method)
    dense = {part.target.name for part in updates(method)}
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    zeros = helpers.zeros(sparse)
    for name, weight in stored.items():
        if name not in dense:
            assert zeros[name] == int((weight == 0).sum())
        elif model != "tiny-gpt2":
            assert zeros[name] == 0
    n = sum(w.numel() for w in stored.values())
    nonzero = sum(int(w.count_nonzero()) for w in stored.values())
    update = sum(p.numel() for part in updates(method) for p in part.update.parameters())
    assert method.report["base_sparsity"] == pytest.approx(1 - nonzero / n)
    assert method.report["base_sparsity"] == pytest.approx(0.6, abs=2 / n)
    assert method.report["stored_unmerged"] == nonzero + update


def test_the_pooler_is_pruned_only_on_demand():
    for wanted in (False, True):
        model, method, _ = attached(prune_pooler=wanted)
        trained(method)
        before = model.bert.pooler.dense.weight.clone()
        method.step(model, 0.5)
        assert torch.equal(before, model.bert.pooler.dense.weight) != wanted
        plain = [base(p.target)[p.rows] for p in method.parts if p.update is None]
        n = sum(w.numel() for w in plain)
        assert sum(int((w == 0).sum()) for w in plain) == round(0.5 * n)
        assert n == 2 * (2 * 64 * 64 + 2 * 64 * 128) + wanted * 64 * 64


# Heads and neurons


def heads_of(method):
    return [heads for heads, _ in method.blocks]


def removed(units):
    """Units all of whose rows in all matrices, biases and columns are zero."""
    columns = base(units.columns).reshape(-1, units.count, units.width.stop // units.count)
    gone = (columns == 0).all(dim=2).all(dim=0)
    for target, area in units.rows:
        rows = (base(target)[area] == 0).all(dim=1)
        if target.module.bias is not None:
            rows &= target.module.bias[area] == 0
        gone &= rows.view(units.count, -1).all(dim=1)
    return gone.nonzero()[:, 0].tolist()


@every
def test_every_layer_loses_the_same_number_of_heads_those_that_moved_least(model):
    sparse, method, ctx = attached(model, 0.5, "heads")
    trained(method)
    for target in ctx.targets:
        if target.module.bias is not None:
            target.module.bias.data.fill_(0.1)  # zero at the start, as a pretrained one is not
    expected = []
    for heads in heads_of(method):
        modules = [target.module for target, _ in heads.rows]
        scores = []
        for h in range(heads.count):
            total = 0.0
            for part in updates(method):
                if any(part.target.module is m for m in modules):
                    share = part.update.delta().shape[0] // heads.count
                    total += part.update.delta()[h * share : (h + 1) * share].abs().sum().item()
            scores.append(total)
        lowest = sorted(range(heads.count), key=scores.__getitem__)[: heads.count // 2]
        expected.append(sorted(lowest))
    method.step(sparse, THIRD)
    assert [removed(heads) for heads in heads_of(method)] == expected
    for part in updates(method):
        rows = part.update.delta().ne(0).any(dim=1)
        assert int(rows.sum()) == rows.numel() // 2


@every
def test_removing_heads_equals_zeroing_their_columns_of_the_attention_output(model):
    sparse, method, _ = attached(model, 0.5, "heads")
    trained(method)
    other = copy.deepcopy(sparse)
    method.step(sparse, THIRD)
    for (heads, _), (twins, _) in zip(slicing.units(sparse), slicing.units(other), strict=True):
        columns = heads.indices(removed(heads), heads.width)
        base(twins.columns)[:, columns] = 0.0
    expected = helpers.logits(other)
    assert torch.allclose(helpers.logits(sparse), expected, atol=1e-5)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), expected, atol=1e-5)


@every
@pytest.mark.parametrize("pattern", ["heads", "heads+neurons"])
def test_removed_heads_and_neurons_stay_removed_while_training_goes_on(model, pattern):
    sparse, method, _ = attached(model, 0.5, pattern)
    learn(sparse, method, steps=9)
    for heads, neurons in method.blocks:
        assert len(removed(heads)) == heads.count // 2
        assert len(removed(neurons)) == (neurons.count // 2 if "neurons" in pattern else 0)
    method.finish(sparse)
    for heads, neurons in slicing.units(sparse):
        assert len(heads.alive()) == heads.count - heads.count // 2
        assert len(removed(heads)) == heads.count // 2
        assert len(neurons.alive()) == neurons.count - len(removed(neurons))


@every
def test_coefficients_choose_heads_and_neurons_and_are_folded(model):
    sparse, method, _ = attached(
        model, 0.5, "heads+neurons", head_sparsity=0.5, neuron_sparsity=0.4
    )
    trained(method)
    g = torch.Generator().manual_seed(0)
    scales, expected = method.coefficients, []
    for scale in scales:
        scale.c.data = torch.randn(scale.c.shape, generator=g)
        n = round((0.5 if scale.c.numel() < 10 else 0.4) * scale.c.numel())
        expected.append(sorted(scale.c.abs().argsort()[:n].tolist()))
    other = copy.deepcopy(sparse)
    for scale, lowest in zip([m for m in other.modules() if _is_scale(m)], expected, strict=True):
        scale.c.data[lowest] = 0.0
    before = helpers.logits(other)
    method.step(sparse, THIRD)
    assert [removed(units) for block in method.blocks for units in block] == expected
    assert all(m.folded for m in sparse.modules() if _is_scale(m))
    assert not any(base(units.columns).requires_grad for b in method.blocks for units in b)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)


def _is_scale(module):
    return type(module).__name__ == "Coefficients"


def test_loss_adds_the_coefficients_l1_norm_until_they_are_folded():
    model, method, _ = attached(pattern="heads+neurons", l1=0.5)
    outputs = type("Outputs", (), {"loss": torch.tensor(2.0)})()
    numbers = 2 * (4 + 128)
    assert method.loss(model, {}, outputs).item() == pytest.approx(2.0 + 0.5 * numbers)
    trained(method)
    method.step(model, 0.5)
    assert method.loss(model, {}, outputs).item() == 2.0


@every
def test_coefficients_count_as_trainable(model):
    counts = {}
    for pattern in DSEE.patterns:
        sparse, method, _ = attached(model, pattern=pattern)
        counts[pattern] = count_trainable(sparse, method.param_groups(sparse)).body
    config = sparse.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    ffn = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    assert counts["heads"] == counts["unstructured"]
    assert counts["heads+neurons"] == counts["heads"] + 2 * (heads + ffn)


def test_at_least_one_head_is_left():
    model, method, _ = attached(sparsity=0.95, pattern="heads")
    trained(method)
    method.step(model, 0.5)
    assert [len(removed(heads)) for heads in heads_of(method)] == [3, 3]


def test_a_finished_model_is_sliced_to_what_was_kept():
    steps = {"budget__steps": 6, "budget__batch": 4, "omega": "svd"}
    cell = helpers.cell("dsee", "tiny-bert", 0.25, "heads+neurons", **steps)
    fit = fit_cell(cell, lambda *_: None)
    before = helpers.logits(fit.model)
    slicing.slice_units(fit.model)
    assert fit.model.config.sliced == {"heads": [3, 3], "neurons": [96, 96]}
    assert torch.allclose(helpers.logits(fit.model), before, atol=1e-5)


# One budget, two phases


def test_the_optimizer_starts_afresh_and_once():
    model, method, _ = attached()
    optimizer = learn(model, method, steps=9)
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {6}  # of nine updates three belong to the first phase
    assert len(optimizer.state) == sum(len(g["params"]) for g in optimizer.param_groups)


def test_the_schedule_starts_afresh():
    method = DSEE(DSEE.Params(phase1=0.25))
    factors = [method.lr_factor(t / 8) for t in range(9)]
    assert factors[:3] == [1.0, 0.5, 1.0]
    assert factors[2:] == pytest.approx([(8 - t) / 6 for t in range(2, 9)])


def test_s1_is_derived_at_the_first_step_of_the_second_phase():
    model, method, _ = attached()
    trained(method)
    seen = []
    for t in range(7):
        method.step(model, t / 6)
        seen.append(sum(int((w == 0).sum()) for w in bases(method).values()) > 0)
    assert seen == [False, False, True, True, True, True, True]


# Counts


def bert_base(n):
    """DSEE attached to BERT-base on the meta device."""
    with torch.device("meta"):
        config = AutoConfig.for_model("bert")
        model = AutoModelForSequenceClassification.from_config(config)
    cell = helpers.cell("dsee", pattern="unstructured")
    method = DSEE(DSEE.Params(support=n, omega="random", prune_pooler=True))
    ctx = Context(
        cell=cell,
        budget=Budget(steps=1, batch=1, length=1),
        targets=targets.prunable(model),
        calibration=list,
        teacher=lambda: model,
        rng=torch.Generator(),
        device=torch.device("meta"),
    )
    method.attach(model, ctx)
    return model, method


@pytest.mark.parametrize(("n", "adapter"), [(16, 590_208), (64, 591_360), (128, 592_896)])
def test_bert_base_counts_are_the_papers(n, adapter):
    model, method = bert_base(n)
    held = count_trainable(model, method.param_groups(model))
    assert (held.body, held.head) == (adapter, 1_538)
    assert round(100 * (adapter + 1_538) / 109_483_778, 1) == 0.5


def test_bert_base_pools_are_the_papers():
    _, method = bert_base(16)
    sizes = {False: 0, True: 0}
    for part in method.parts:
        sizes[part.update is not None] += base(part.target)[part.rows].numel()
    assert sizes == {False: 71_368_704, True: 14_155_776}
    assert [round(0.2 * n) for n in sizes.values()] == [14_273_741, 2_831_155]


def test_bert_base_update_without_three_heads_a_layer():
    target = type("T", (), {"shape": (768, 768), "transposed": False})()
    empty = torch.zeros(2, 0, dtype=torch.long)
    update = Update(target, slice(0, 768), empty, DSEE.Params(), None)
    update.B.data.fill_(1.0)
    update.forget(torch.arange(3 * 64))
    assert 12 * 2 * update.stored() == 516_096


def test_patterns_and_promises():
    assert not registry.method("dsee").promises_sparsity
    model, _, ctx = helpers.attached(helpers.cell("dense"))
    ctx = ctx._replace(targets=[t for t in ctx.targets if "output" in t.name])
    with pytest.raises(BenchError, match="no query and value"):
        DSEE().attach(model, ctx)


# What decides


def naive_scores(part, by, rows):
    """|W|, |(α/r)BA| and so on, element by element from the equations."""
    W = base(part.target)[rows]
    A, B = part.update.A.detach(), part.update.B.detach()
    S = torch.zeros_like(W)
    for place, value in zip(
        part.update.omega.t().tolist(), part.update.theta.detach(), strict=True
    ):
        S[place[0], place[1]] = value
    scale = 32 / 16
    terms = {"ABS": scale * (B @ A + S), "AB": scale * B @ A, "WABS": W + scale * (B @ A + S)}
    terms |= {"WAB": W + scale * B @ A, "W": W}
    return terms[by].abs()


@every
@pytest.mark.parametrize("by", ["ABS", "AB", "WABS", "WAB", "W"])
def test_q_and_v_go_by_the_named_terms_and_the_others_by_their_weights(model, by):
    sparse, method, _ = attached(model, 0.3, score=by)
    trained(method)
    expected = [naive_scores(part, by, part.rows) for part in updates(method)]
    others = [p for p in method.parts if p.update is None]
    plain = [base(p.target)[p.rows].abs().clone() for p in others]
    method.step(sparse, THIRD)
    for parts, scores in ((updates(method), expected), (others, plain)):
        keep = torch.cat([(base(p.target)[p.rows] != 0).flatten() for p in parts])
        flat = torch.cat([score.flatten() for score in scores])
        assert int((~keep).sum()) == round(0.3 * keep.numel())
        assert flat[~keep].max() <= flat[keep].min() + 1e-6


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.6), (0.6, 0.0), (None, 0.1), (0.1, None)])
def test_each_pool_has_its_ratio(first, second):
    params = {"others_sparsity": first, "qv_sparsity": second}
    given = {name: value for name, value in params.items() if value is not None}
    sparse, method, ctx = attached("tiny-gpt2", 0.5, **given)
    trained(method)
    method.step(sparse, THIRD)
    for updated, share in ((False, first), (True, second)):
        parts = [p for p in method.parts if (p.update is not None) == updated]
        weights = [base(p.target)[p.rows] for p in parts]
        n, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
        assert zeros == round((0.5 if share is None else share) * n)
        if not updated:
            assert method.expected(ctx).zeros == zeros


@every
@pytest.mark.parametrize("by", ["ABS", "AB", "WABS", "WAB", "W"])
def test_heads_go_by_sizes_that_are_added_and_not_scaled(model, by):
    sparse, method, _ = attached(model, 0.5, "heads", score=by, alpha=64.0)
    trained(method)
    expected = []
    for heads in heads_of(method):
        modules = [target.module for target, _ in heads.rows]
        parts = [p for p in updates(method) if any(p.target.module is m for m in modules)]
        scores = torch.zeros(heads.count)
        for part in parts:
            W, S = base(part.target)[part.rows], torch.zeros_like(base(part.target)[part.rows])
            S[part.update.omega[0], part.update.omega[1]] = part.update.theta.detach()
            low = (part.update.B @ part.update.A).detach()
            size = {"ABS": low + S, "WABS": low + S, "AB": low, "WAB": low, "W": 0 * W}[by].abs()
            size = size + W.abs() if "W" in by else size
            scores += torch.stack([rows.sum() for rows in size.chunk(heads.count)])
        expected.append(sorted(scores.argsort()[: heads.count // 2].tolist()))
    method.step(sparse, THIRD)
    assert [removed(heads) for heads in heads_of(method)] == expected
