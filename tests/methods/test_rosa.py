"""Properties and counts of RoSA (methods/README.md, rosa)."""

import pytest
import torch

from bench.api import BenchError
from bench.costs.parameters import count_trainable
from bench.planning.job import Job
from bench.weights import targets
from methods.rosa import RoSA
from methods.shared.low_rank import LowRankUpdate
from methods.shared.roles import roles
from methods.shared.sparse_update import SparseUpdate
from tests import helpers, meta
from tests.oracles.topk import keep_by_sort

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
# 20 updates: four of LoRA alone, two that collect gradients, and 14 after the restart.
STEPS, ALONE, RESTART = 20, 4, 6


def attached(model="tiny-bert", steps=STEPS, **more):
    return helpers.attached(
        helpers.cell("rosa", model, budget__steps=steps, **({"gradients": 2} | more))
    )


def layers(target):
    """The low-rank and the sparse update of a target; None for what it does not have."""
    found = dict.fromkeys((LowRankUpdate, SparseUpdate))
    found |= {type(layer): layer for layer in target.module.parametrizations.weight}
    return found[LowRankUpdate], found[SparseUpdate]


def original(target):
    stored = target.module.parametrizations.weight.original.detach()
    return (stored.t() if target.transposed else stored).contiguous()


def low_rank(target):
    """(α/r)·BA of a target, (out, in)."""
    low, _ = layers(target)
    return torch.cat([low.scale * B @ A for A, B in zip(low.A, low.B, strict=True)]).detach()


def matrices(target):
    """The rows of each logical matrix."""
    return list(roles(target).values()) if target.parts == 3 else [slice(0, target.shape[0])]


def support(target):
    """Ω as a mask of (out, in)."""
    _, sparse = layers(target)
    mask = torch.zeros(target.shape, dtype=torch.bool)
    rows, columns = sparse.omega.flip(0) if target.transposed else sparse.omega
    mask[rows, columns] = True
    return mask


# W' = W + (α/r)BA + S


@every
def test_the_update_is_zero_off_the_support_and_the_values_on_it(model):
    sparse, method, _ = attached(model, density=0.02)
    helpers.learn(sparse, method, STEPS)
    for target in targets.prunable(sparse):
        rest = target.weight - original(target) - low_rank(target)
        mask = support(target)
        assert rest[~mask].abs().max() < 1e-6
        assert rest[mask].abs().median() > 1e-4
        _, layer = layers(target)
        assert torch.allclose(rest[mask].sort().values, layer.values.sort().values, atol=1e-6)


@every
@pytest.mark.parametrize("density", [0.0005, 0.006, 0.3, 1.0])
def test_the_support_has_exactly_the_share_of_every_matrix(model, density):
    sparse, method, _ = attached(model, density=density)
    method.step(sparse, 1.0)  # without a gradient all places tie
    for target in targets.prunable(sparse):
        mask = support(target)
        for rows in matrices(target):
            assert int(mask[rows].sum()) == int(density * mask[rows].numel() + 1e-6)
        assert mask.sum() == layers(target)[1].values.numel()


@every
def test_at_the_start_the_logits_are_the_base_models(model):
    sparse, _, _ = attached(model)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.allclose(helpers.logits(sparse), helpers.logits(dense), atol=1e-6)


@every
def test_merged_is_unmerged_and_dense(model):
    sparse, method, _ = attached(model, density=0.02)
    helpers.learn(sparse, method, STEPS)
    before = helpers.logits(sparse)
    method.finish(sparse)
    assert torch.allclose(helpers.logits(sparse), before, atol=1e-5)
    assert not any(helpers.zeros(sparse).values())


@every
@pytest.mark.parametrize("rank", [0, 4])
def test_gradients_equal_autograd_through_the_equation(model, rank):
    sparse, method, _ = attached(model, density=0.02, rank=rank)
    helpers.learn(sparse, method, STEPS)
    target = targets.prunable(sparse)[-1]
    low, layer = layers(target)
    g = torch.Generator().manual_seed(0)
    G = torch.randn(target.stored.shape, generator=g)
    sparse.zero_grad()
    target.module.weight.backward(G)
    G = G.t() if target.transposed else G
    mask = support(target)
    order = torch.zeros(target.shape, dtype=torch.long)
    rows, columns = layer.omega.flip(0) if target.transposed else layer.omega
    order[rows, columns] = torch.arange(len(layer.values))
    assert torch.equal(layer.values.grad[order[mask]], G[mask])
    if rank:
        A, B = low.A[0], low.B[0]
        assert torch.allclose(B.grad, low.scale * G @ A.t(), atol=1e-4)
        assert torch.allclose(A.grad, low.scale * B.t() @ G, atol=1e-4)
    frozen = target.module.parametrizations.weight.original
    assert frozen.grad is None


@every
def test_without_density_it_is_lora(model):
    same = {"where": "all", "alpha": 8.0, "weight_decay": 0.0}
    lora, plain, ctx = helpers.attached(helpers.cell("lora", model, **same))
    fresh, _, ctx = helpers.attached(helpers.cell("dense", model))
    method = RoSA(RoSA.Params(density=0.0))
    seed = helpers.attached(helpers.cell("lora", model))[2].rng.initial_seed()
    method.attach(fresh, ctx._replace(rng=torch.Generator().manual_seed(seed)))
    helpers.learn(lora, plain, 8)
    method.steps = 8
    helpers.learn(fresh, method, 8)
    plain.finish(lora)
    method.finish(fresh)
    for a, b in zip(lora.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


@every
def test_without_rank_it_is_sparse_tuning(model):
    sparse, method, _ = attached(model, rank=0, density=0.02)
    start = {t.name: original(t) for t in targets.prunable(sparse)}
    assert method.alone == 0
    helpers.learn(sparse, method, STEPS)
    masks = {t.name: support(t) for t in targets.prunable(sparse)}
    held = count_trainable(sparse, method.param_groups(sparse)).body
    assert held == sum(int(mask.sum()) for mask in masks.values())
    method.finish(sparse)
    for target in targets.prunable(sparse):
        moved = target.weight != start[target.name]
        assert moved.any()
        assert not (moved & ~masks[target.name]).any()


# Ω


def batch_gradients(model, name, collected):
    """Gradients of the merged weights, as (out, in), at each of the updates that collect."""
    found = {}
    twin, _, _ = helpers.attached(helpers.cell("dense", name))
    twin.eval()

    def before(t):
        if t not in collected:
            return
        twin.zero_grad()
        for target, merged in zip(targets.prunable(twin), targets.prunable(model), strict=True):
            target.write(merged.weight)
        head = dict(targets.head_parameters(model))
        for parameter, value in targets.head_parameters(twin):
            value.data.copy_(head[parameter])
        twin(**helpers.batch(t)).loss.backward()
        for target in targets.prunable(twin):
            grad = target.module.weight.grad.clone()
            found.setdefault(target.name, []).append(grad.t() if target.transposed else grad)

    return found, before


@every
@pytest.mark.parametrize(
    ("collect", "micro"), [("mean_squared", 1), ("mean", 1), ("mean_squared", 4)]
)
def test_omega_is_where_the_collected_gradients_are_largest(model, collect, micro):
    sparse, method, _ = attached(model, density=0.02, collect=collect)
    found, before = batch_gradients(sparse, model, range(ALONE, RESTART))
    helpers.learn(sparse, method, STEPS, before, micro=micro)
    masks = {}
    for how in ("mean_squared", "mean"):
        for target in targets.prunable(sparse):
            stack = torch.stack(found[target.name])
            assert len(stack) == 2
            score = stack.square().mean(0) if how == "mean_squared" else stack.mean(0).abs()
            keep = [keep_by_sort(s, s.numel() - int(0.02 * s.numel() + 1e-6))
                    for s in (score[rows].contiguous() for rows in matrices(target))]  # fmt: skip
            masks[how, target.name] = torch.cat(keep)
    differ = 0
    for target in targets.prunable(sparse):
        wanted, mask = masks[collect, target.name], support(target)
        # Rounding may swap places at the threshold.
        assert (wanted != mask).sum() <= max(2, 0.02 * wanted.sum()), target.name
        differ += int((masks["mean", target.name] != masks["mean_squared", target.name]).sum())
    assert differ > 100


def test_omega_of_a_square_conv1d_is_not_transposed():
    sparse, method, _ = attached("tiny-gpt2", density=0.02)
    target = next(t for t in targets.prunable(sparse) if t.shape[0] == t.shape[1])
    _, layer = layers(target)
    layer.total = torch.zeros(target.shape).t()
    layer.total[3, 5] = 9.0  # stored (in, out)
    for other in method.layers:
        other.choose()
    assert support(target)[5, 3]
    layer.values.data[:] = 1.0
    change = target.weight - original(target)
    assert change[5, 3] == pytest.approx(1.0, abs=1e-5)
    assert change.count_nonzero() == len(layer.values)


def test_fused_matrices_have_a_support_for_each_of_q_k_v():
    sparse, _, _ = attached("tiny-gpt2", density=0.02)
    target = next(t for t in targets.prunable(sparse) if t.parts == 3)
    _, layer = layers(target)
    layer.total = torch.zeros(target.stored.shape)
    layer.total[:, 64:128] = 1.0  # the key's outputs: all of them beat those of q and v
    layer.choose()
    mask = support(target)
    assert [int(mask[rows].sum()) for rows in matrices(target)] == [int(0.02 * 64 * 64)] * 3


# One budget, two phases


@pytest.mark.parametrize(
    ("steps", "params", "alone"),
    [(1000, {}, 64), (300, {}, 60), (100, {}, 20), (6, {}, 1), (1000, {"rank": 0}, 0),
     (100, {"lora_steps": 5}, 5), (100, {"lora_share": 0.5}, 50)],
)  # fmt: skip
def test_warm_up_is_64_updates_or_a_share_of_the_budget(steps, params, alone):
    _, method, _ = attached(steps=steps, gradients=1, **params)
    assert (method.alone, method.restart) == (alone, alone + 1)


def test_before_omega_there_is_no_s_and_after_it_all_is_as_at_the_start():
    sparse, method, _ = attached(density=0.02)
    trained = [p for p in sparse.parameters() if p.requires_grad]
    held = {id(p) for g in method.param_groups(sparse) for p in g["params"]}
    assert {id(p) for p in trained} == held
    start = [p.detach().clone() for p in trained]
    moved = []

    def look(t):
        """Just before the update, so after `step`."""
        moved.append(any(not torch.equal(p, q) for p, q in zip(trained, start, strict=True)))
        if t < RESTART:
            assert all(layer.omega is None for layer in method.layers)
            assert all(layer.values.grad is None for layer in method.layers)
            assert not any(layer.values.any() for layer in method.layers)
        else:
            assert all(layer.values.grad is not None for layer in method.layers)

    optimizer = helpers.learn(sparse, method, STEPS, look)
    # The first update's learning rate is 0 by warm-up, in either phase.
    assert [t for t in range(STEPS) if not moved[t]] == [0, 1, RESTART, RESTART + 1]
    assert {int(s["step"]) for s in optimizer.state.values()} == {STEPS - RESTART}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == held
    assert all(layer.total is None and layer.batch is None for layer in method.layers)


def test_after_the_restart_training_is_as_if_omega_had_been_known(monkeypatch):
    first, method, _ = attached(density=0.02)
    helpers.learn(first, method, STEPS)
    second, known, _ = attached(density=0.02)
    for a, b in zip(method.layers, known.layers, strict=True):
        b.omega = a.omega
    known.start, known.steps, known.restart = [], STEPS - RESTART, 0
    batch = helpers.batch
    monkeypatch.setattr(helpers, "batch", lambda t: batch(t + RESTART))
    helpers.learn(second, known, STEPS - RESTART)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_schedule_starts_afresh():
    _, method, _ = attached(warmup=0.25)
    factors = [method.lr_factor(t / STEPS) for t in range(STEPS + 1)]
    after = factors[RESTART:]
    assert after[0] == 0.0
    assert after[-1] == 0.0
    assert factors[:RESTART] == after[:RESTART]
    assert max(after) == pytest.approx(1.0, abs=0.1)


def test_a_and_b_s_and_the_head_have_their_learning_rates():
    sparse, method, _ = attached()
    groups = method.param_groups(sparse)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    scale = 768 / 64
    for target in targets.prunable(sparse):
        low, layer = layers(target)
        assert rates[id(layer.values)] == pytest.approx(1.4e-4 * scale)
        assert all(rates[id(p)] == pytest.approx(5e-4 * scale) for p in low.A)
        assert all(rates[id(p)] == pytest.approx(5e-4) for p in low.B)  # reads r numbers
    for _, p in targets.head_parameters(sparse):
        assert rates[id(p)] == pytest.approx(5e-4 * (scale if p.ndim > 1 else 1))


# Counts


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(
    ("rank", "density", "body"),
    [(8, 0.003, 1_581_864), (8, 0.006, 1_836_648), (16, 0.006, 3_163_752)],
)
def test_counts_are_the_papers_with_s_by_its_support(kind, rank, density, body):
    method = RoSA(RoSA.Params(rank=rank, density=density))
    assert meta.trainable(method, meta.model(kind), "dense").body == body


def test_what_is_held_does_not_change_with_omega():
    sparse, method, _ = attached()
    before = count_trainable(sparse, method.param_groups(sparse))
    helpers.learn(sparse, method, STEPS)
    assert count_trainable(sparse, method.param_groups(sparse)) == before


def test_impossible_parameters_are_refused():
    with pytest.raises(BenchError, match="rank 0 and density 0: at least one"):
        Job.resolve(helpers.cell("rosa", rank=0, density=0.0))
    # Of 10 steps, 2 train A and B alone and one must be left to train S.
    with pytest.raises(BenchError, match="gradients 8: it must be below 8, the steps left of 10"):
        Job.resolve(helpers.cell("rosa", budget__steps=10, gradients=8))
    Job.resolve(helpers.cell("rosa", budget__steps=10, gradients=7))
    Job.resolve(helpers.cell("rosa", budget__steps=10, gradients=9, density=0.0))
