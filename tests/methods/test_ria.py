"""Properties of RIA (methods/README.md, ria)."""

import itertools

import pytest
import torch

from bench.api import BenchError, Pattern
from bench.planning.job import Job
from bench.weights import targets
from bench.weights.patterns import holds
from methods.ria import RIA, ria_scores
from methods.shared.input_statistics import ColumnNorms
from methods.shared.masks import pruned_count
from methods.shared.permutation import best_order, check, foldable, kept
from tests import helpers
from tests.field.families import GPT2, build, ids
from tests.oracles.topk import keep_by_sort


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pruned(W, norms, sparsity=0.5, n_m=None, **params):
    method = RIA(RIA.Params(**params))
    method.n_m = n_m
    statistic = ColumnNorms(W.shape[1], W.device)
    statistic.add(torch.diag(norms))
    return method.pruned(W, statistic, pruned_count(W.numel(), sparsity))


def test_scores_equal_the_formula_element_by_element():
    W, norms = random(5, 7), random(7, seed=1).abs()
    scores = ria_scores(W, norms, 0.5)
    for i in range(5):
        for j in range(7):
            share = abs(W[i, j]) / W[:, j].abs().sum() + abs(W[i, j]) / W[i].abs().sum()
            assert scores[i, j].item() == pytest.approx((share * norms[j] ** 0.5).item(), rel=1e-5)


def test_power_zero_is_relative_importance_whatever_the_inputs():
    W, norms = random(20, 32), random(32, seed=1).abs()
    norms[4] = 0
    assert torch.equal(pruned(W, norms, a=0.0), pruned(W, torch.ones(32), a=0.5))
    assert not torch.equal(pruned(W, norms, a=0.5), pruned(W, norms, a=0.0))


def test_rows_and_columns_of_zeros_score_zero():
    W = random(6, 8)
    W[2], W[:, 3] = 0, 0
    scores = ria_scores(W, torch.ones(8), 0.5)
    assert bool(scores.isfinite().all())
    assert not scores[2].any()
    assert not scores[:, 3].any()


def test_pool_is_the_layer_or_the_row():
    W, norms = random(10, 33), random(33, seed=1).abs()
    scores = ria_scores(W, norms, 0.5)
    assert torch.equal(pruned(W, norms) != 0, keep_by_sort(scores, 165))
    rows = pruned(W, norms, pool="row") == 0
    assert set(rows.sum(1).tolist()) == {16, 17}
    assert int(rows.sum()) == 165


def test_n_m_holds_in_consecutive_inputs():
    W, norms = random(10, 32), random(32, seed=1).abs()
    keep = pruned(W, norms, n_m=(2, 4)).view(-1, 4) != 0
    scores = ria_scores(W, norms, 0.5).view(-1, 4)
    for group, left in zip(scores, keep, strict=True):
        assert torch.equal(left, keep_by_sort(group, 2))


def test_scaling_all_inputs_changes_no_mask():
    W, norms = random(10, 32), random(32, seed=1).abs()
    assert torch.equal(pruned(W, norms), pruned(W, 16 * norms))


@pytest.mark.parametrize("pool", ["layer", "row"])
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_exact_zeros_in_every_matrix(model, pool):
    sparse, _, ctx = helpers.attached(helpers.cell("ria", model, 0.7, pool=pool))
    for target in ctx.targets:
        n = target.weight.numel()
        assert helpers.zeros(sparse)[target.name] == pruned_count(n, 0.7)


# Channel permutation


def every_grouping(columns, m):
    """All ways to put columns into groups of m, as orders."""
    if not columns:
        yield []
        return
    first, *rest = columns
    for others in itertools.combinations(rest, m - 1):
        left = [c for c in rest if c not in others]
        for more in every_grouping(left, m):
            yield [first, *others, *more]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_m", [(2, 4), (1, 4), (1, 2), (3, 4)])
def test_the_order_keeps_more_than_the_identity_and_at_most_the_optimum(seed, n_m):
    scores = random(5, 8, seed=seed).abs() * torch.logspace(-1, 1, 8)
    best = max(kept(scores[:, order], *n_m) for order in every_grouping(list(range(8)), n_m[1]))
    order = best_order(scores, *n_m)
    assert sorted(order.tolist()) == list(range(8))
    found = kept(scores[:, order], *n_m)
    assert kept(scores, *n_m) <= found <= best + 1e-6


def test_the_last_turn_is_dealt_best_while_the_others_stay():
    # By brute force over all ways to deal the fourth column of each group.
    scores = random(7, 16, seed=3).abs() * torch.logspace(-1, 1, 16)
    groups = best_order(scores, 2, 4).view(4, 4)
    found = kept(scores[:, groups.flatten()], 2, 4)
    for dealt in itertools.permutations(groups[:, 3].tolist()):
        other = torch.cat([groups[:, :3], torch.tensor(dealt)[:, None]], dim=1)
        assert kept(scores[:, other.flatten()], 2, 4) <= found + 1e-5


def test_large_columns_are_spread_over_the_groups():
    # Four large neighbours: in their own order half of them would go.
    scores = torch.ones(3, 16) * 0.1
    scores[:, :4] = 1.0
    order = best_order(scores, 2, 4)
    assert kept(scores, 2, 4) == pytest.approx(3 * (2 * 1.0 + 6 * 0.1), rel=1e-5)
    assert kept(scores[:, order], 2, 4) == pytest.approx(3 * (4 * 1.0 + 4 * 0.1), rel=1e-5)


def test_an_order_that_keeps_no_more_is_the_identity():
    assert best_order(torch.ones(3, 16), 2, 4).tolist() == list(range(16))


FAMILIES = {
    "bert": ("MaskedLM", {}),
    "gpt2": ("CausalLM", GPT2),
    "llama": ("CausalLM", {"num_key_value_heads": 2}),
    "opt": ("CausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32, "intermediate_size": None}),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_reordering_changes_no_logit(kind):
    head, more = FAMILIES[kind]
    model = build(kind, head, **more)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_()  # zero at the start, which would hide a bias left behind
    batch = {"input_ids": torch.tensor(ids(4, 16))}
    with torch.no_grad():
        before = model(**batch).logits
    found = foldable(model, 4)
    assert len(found) == 6  # attention output and feed-forward output of three blocks
    g = torch.Generator().manual_seed(0)
    weights = {t.name: t.weight.clone() for t in targets.prunable(model)}
    for channels in (one for some in found.values() for one in some):
        channels.permute(torch.randperm(channels.columns.shape[1], generator=g))
    changed = {t.name for t in targets.prunable(model) if not t.weight.equal(weights[t.name])}
    assert changed >= set(found)
    with torch.no_grad():
        after = model(**batch).logits
    assert torch.allclose(after, before, atol=1e-5)
    check(model, 4, batch)
    check(model.bfloat16(), 4, batch)  # in float32 however the weights are stored


def test_query_heads_that_share_values_are_reordered_alike():
    model = build("llama", num_key_value_heads=2)
    heads = foldable(model, 4)["model.layers.0.self_attn.o_proj"]
    assert [one.columns.tolist() for one in heads] == [
        [list(range(0, 8)), list(range(8, 16))],
        [list(range(16, 24)), list(range(24, 32))],
    ]


def test_a_model_that_tells_neurons_apart_is_refused():
    model = build("llama")
    layer = model.model.layers[1].mlp
    scale = torch.linspace(1, 3, 64)
    layer.down_proj.register_forward_pre_hook(lambda _, args: (args[0] * scale,))
    weights = {t.name: t.weight.clone() for t in targets.prunable(model)}
    with pytest.raises(BenchError, match="when neurons or values change places; use permute none"):
        check(model, 4, {"input_ids": torch.tensor(ids(2, 8))})
    assert all(t.weight.equal(weights[t.name]) for t in targets.prunable(model))


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_folded_keeps_the_pattern_the_count_and_values_of_the_dense_model(model, pattern):
    cells = [
        helpers.cell("ria", model, 1 - int(pattern[0]) / 4, pattern, permute=how)
        for how in ("none", "folded")
    ]
    (plain, _, before), (folded, method, after) = (helpers.attached(cell) for cell in cells)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert all(holds(t.weight, Pattern(pattern)) for t in after.targets)
    assert helpers.zeros(plain) == helpers.zeros(folded)
    moved = [
        t.name
        for t, other in zip(after.targets, before.targets, strict=True)
        if not torch.equal(t.weight, other.weight)
    ]
    assert set(moved) >= set(method.channels)
    whole = {t.name: t.weight for t in targets.prunable(dense)}
    for name in method.channels:  # the columns are in another order, the rows are not
        weight = next(t.weight for t in after.targets if t.name == name)
        for row, values in zip(weight[:4], whole[name][:4], strict=True):
            assert torch.isin(row[row != 0], values).all()


def test_a_permutation_needs_groups():
    with pytest.raises(BenchError, match="permute folded: it is for N:M as 2:4, not for unstruct"):
        Job.resolve(helpers.cell("ria", permute="folded"))
