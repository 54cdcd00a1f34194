"""Properties and counts of AST (methods/README.md, ast)."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.api import BenchError, Budget, Context
from bench.costs.parameters import count_trainable
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import catalog, loading
from bench.weights import targets
from methods.ast_trainer import AST, NEW_HEAD_LR, annealed
from methods.dense import Dense
from methods.shared.annealed_adamw import AnnealedAdamW
from methods.shared.distill import distilled, kd_loss
from methods.shared.masks import keep_n_m
from methods.shared.slorb import slorb
from tests import helpers
from tests.helpers import fit_cell, run_cell
from tests.oracles import ast

every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
RNG = torch.Generator


def generator(seed=0):
    return RNG().manual_seed(seed)


def attached(model="tiny-bert", pattern="2:4", **overrides):
    return helpers.attached(helpers.cell("ast", model, pattern=pattern, kd=0.0, **overrides))


def batch(seed=0, size=4, length=10):
    ids = torch.randint(5, 200, (size, length), generator=generator(seed))
    labels = torch.randint(0, 2, (size,), generator=generator(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def original(target):
    return target.module.parametrizations.weight.original


def keep_of(target):
    return target.module.parametrizations.weight[0].keep.bool()


# --- masks


@every
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_every_group_of_inputs_keeps_exactly_n(model, pattern):
    n, m = map(int, pattern.split(":"))
    _, _, ctx = attached(model, pattern)
    for target in ctx.targets:
        dense = targets.normal_form(original(target).detach(), target.transposed).abs()
        for row, kept in zip(dense.reshape(-1, m), target.weight.reshape(-1, m) != 0, strict=True):
            assert int(kept.sum()) == n
            assert row[kept].min() >= row[~kept].max()


def test_groups_run_along_dim_1_of_linear_and_stored_dim_0_of_conv1d():
    for model, transposed in (("tiny-bert", False), ("tiny-gpt2", True)):
        _, _, ctx = attached(model)
        for target in ctx.targets:
            assert target.transposed is transposed
            keep = keep_of(target)
            assert keep.shape == original(target).shape
            groups = keep.unfold(0 if transposed else 1, 4, 4)
            assert bool((groups.sum(-1) == 2).all())


@every
def test_finish_leaves_exactly_the_masked_weights(model):
    pruned, method, ctx = attached(model)
    expected = {t.name: (original(t).detach().clone(), keep_of(t).clone()) for t in ctx.targets}
    before = helpers.logits(pruned)
    method.finish(pruned)
    assert torch.equal(helpers.logits(pruned), before)
    for target in ctx.targets:
        weight, keep = expected[target.name]
        assert torch.equal(target.stored, weight.masked_fill(~keep, 0.0))


def test_a_width_that_is_no_multiple_is_named():
    with pytest.raises(
        BenchError, match=r"pattern 2:5: .*query has 64 inputs, not a multiple of 5"
    ):
        attached(pattern="2:5")
    with pytest.raises(
        BenchError, match=r"slorb_k 24: .*query has 64 inputs, not a multiple of 24"
    ):
        attached(slorb="mean", slorb_k=24)


def test_the_mask_is_chosen_anew_right_after_updates_0_10_20():
    model, method, ctx = attached(budget__steps=40)
    target = ctx.targets[0]
    refreshed = []
    for done in range(41):
        original(target).data.copy_(torch.randn(target.shape, generator=generator(done)))
        before = keep_of(target).clone()
        method.step(model, done / 40)
        if not torch.equal(before, keep_of(target)):
            refreshed.append(done)
            assert torch.equal(keep_of(target), keep_n_m(original(target).detach().abs(), 2, 4))
    assert refreshed == [1, 11, 21, 31]


def test_every_0_keeps_the_first_mask():
    model, method, ctx = attached(budget__steps=40, every=0)
    masks = [keep_of(t).clone() for t in ctx.targets]
    for done in range(41):
        for target in ctx.targets:
            original(target).data.neg_().add_(0.01)
        method.step(model, done / 40)
    assert all(torch.equal(keep_of(t), m) for t, m in zip(ctx.targets, masks, strict=True))


def test_the_exported_mask_is_the_one_of_the_last_forward():
    # 11 updates: update 10 is one after which the mask would be chosen anew.
    model, method, ctx = attached(budget__steps=11)
    masks = [keep_of(t).clone() for t in ctx.targets]
    for target in ctx.targets:
        original(target).data.copy_(torch.randn(original(target).shape, generator=generator(1)))
    method.step(model, 1.0)
    method.finish(model)
    for target, keep in zip(ctx.targets, masks, strict=True):
        assert torch.equal(target.stored != 0, keep)


def test_masks_are_in_the_state_dict():
    first, _, ctx = attached()
    for target in ctx.targets:
        buffer = target.module.parametrizations.weight[0].keep
        buffer.copy_(buffer.roll(2, dims=1))
    second, _, other = attached()
    assert not torch.equal(keep_of(ctx.targets[0]), keep_of(other.targets[0]))
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(keep_of(a), keep_of(b)) for a, b in zip(ctx.targets, other.targets, strict=True)
    )


# --- gradients


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
def test_the_gradient_of_a_weight_is_that_of_its_masked_value(model):
    sparse, _, ctx = attached(model)
    sparse.eval()
    sparse(**batch()).loss.backward()
    plain, method, other = attached(model)
    method.finish(plain)  # the same function, without parametrizations
    plain.eval()
    plain(**batch()).loss.backward()
    for target, twin in zip(ctx.targets, other.targets, strict=True):
        grad = original(target).grad
        assert torch.allclose(grad, twin.module.weight.grad, atol=1e-9)
        pruned = grad[~keep_of(target)]
        assert (pruned != 0).float().mean() > 0.9  # dense: what is pruned learns too


# --- schedules


def test_decay_ramps_up_to_t0_and_stays():
    lam, ramp = 1e-4, 0.25
    assert annealed(0.0, lam, ramp) == 0.0
    assert annealed(0.125, lam, ramp) == pytest.approx(lam / 2)
    assert annealed(0.25, lam, ramp) == lam
    assert annealed(1.0, lam, ramp) == lam
    assert annealed(0.0, lam, 0.0) == lam


def test_the_optimizer_follows_the_ramp():
    model, method, _ = attached(ramp=0.5, decay=2e-3, budget__steps=8)
    optimizer = method.optimizer(method.param_groups(model))
    seen = []
    for done in range(9):
        method.step(model, done / 8)
        seen.append(optimizer.decay)
    assert seen == pytest.approx([0, 5e-4, 1e-3, 1.5e-3] + [2e-3] * 5)


def test_learning_rate_is_linear_then_cosine_then_linear():
    # The paper's 40,000 steps: 2,000 of warm-up, cosine to 38,000, lr/10 there, then to 0.
    factor = AST(AST.Params(lr_min=0.1)).lr_factor
    expected = {0: 0, 1000: 0.5, 2000: 1, 20000: 0.55, 38000: 0.1, 39000: 0.05, 40000: 0}
    for step, value in expected.items():
        assert factor(step / 40000) == pytest.approx(value, abs=1e-12), step
    assert factor(11000 / 40000) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert AST(AST.Params(tail=0.0)).lr_factor(1.0) == 0.0


# --- optimizer


def updates(values, gradients, keeps, decays, lrs, wd, **more):
    p = nn.Parameter(torch.tensor(values))
    keep = torch.zeros(len(values), dtype=torch.bool)
    masks = {} if keeps is None else {p: keep}
    optimizer = AnnealedAdamW([{"params": [p], "weight_decay": wd}], masks, **more)
    seen = []
    for t, grad in enumerate(gradients):
        p.grad = torch.tensor(grad)
        if keeps is not None:
            keep.copy_(torch.tensor(keeps[t]))
        optimizer.decay, optimizer.param_groups[0]["lr"] = decays[t], lrs[t]
        optimizer.step()
        seen.append(p.detach().clone())
    return torch.stack(seen), optimizer


@pytest.mark.parametrize("masked", [True, False])
def test_optimizer_is_the_equations(masked):
    g = generator(3)
    n, steps = 37, 12
    values = torch.randn(n, generator=g).tolist()
    gradients = torch.randn(steps, n, generator=g).tolist()
    keeps = (torch.rand(steps, n, generator=g) < 0.5).tolist() if masked else None
    decays = [0.0, 0.0, *(0.3 * t for t in range(steps - 2))]
    lrs = [0.01 * (1 + t % 3) for t in range(steps)]
    ours, _ = updates(values, gradients, keeps, decays, lrs, 0.2, betas=(0.8, 0.9), eps=1e-3)
    for j in range(n):
        bits = [k[j] for k in keeps] if masked else [None] * steps
        column = [row[j] for row in gradients]
        expected = ast.trajectory(values[j], column, bits, decays, lrs, 0.2, 0.8, 0.9, 1e-3)
        assert torch.allclose(ours[:, j], torch.tensor(expected), atol=2e-6)


def test_without_masks_it_is_torchs_adamw():
    values, gradients = torch.randn(50, generator=generator()), torch.randn(5, 50)
    ours, _ = updates(values.tolist(), gradients.tolist(), None, [0.0] * 5, [0.01] * 5, 0.1)
    p = nn.Parameter(values.clone())
    reference = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for t in range(5):
        p.grad = gradients[t].clone()
        reference.step()
        assert torch.allclose(ours[t], p.detach(), atol=1e-7)


def test_without_gradient_pruned_weights_move_toward_0_and_kept_ones_stay():
    values = [0.5, -0.7, 0.9, -0.3]
    keep = [False, False, True, True]
    zeros, lr = [[0.0] * 4] * 3, 1e-3
    seen, _ = updates(values, zeros, [keep] * 3, [1e-4] * 3, [lr] * 3, 0.0)
    start = torch.tensor(values)
    assert torch.equal(seen[:, 2:], start[2:].expand(3, 2))
    path = torch.cat([start[None], seen])[:, :2]
    steps = path.diff(dim=0)
    assert bool((steps * path[:-1] < 0).all())
    assert bool((path.diff(dim=0).sign() == -start[:2].sign()).all())
    # λ is divided by √v, so the first step is lr / (1 − β₁) whatever λ is.
    assert torch.allclose(steps[0].abs(), torch.full((2,), lr / 0.1), rtol=1e-2)


def test_compat_released_grows_all_weights_and_kept_ones_with_twice_the_strength():
    values, decay = [0.5, -0.7, 0.9, -0.3], 1e-2
    keep = [False, False, True, True]
    options = {"compat": "released", "betas": (0.9, 0.95)}
    seen, optimizer = updates(values, [[0.0] * 4], [keep], [decay], [1e-3], 0.0, **options)
    start = torch.tensor(values)
    assert bool((seen[0].abs() > start.abs()).all())
    (state,) = optimizer.state.values()
    pull = (state["exp_avg_sq"] / (1 - 0.95)).sqrt()
    assert torch.allclose(pull, decay * start.abs() * torch.tensor([1.0, 1, 2, 2]), rtol=1e-5)


def test_optimizer_state_survives_saving():
    g = generator(5)
    values, gradients = torch.randn(9, generator=g), torch.randn(6, 9, generator=g)
    keep = torch.rand(9, generator=g) < 0.5

    def fresh(start):
        p = nn.Parameter(start.clone())
        return p, AnnealedAdamW([p], {p: keep}, lr=0.01)

    def advance(p, optimizer, some):
        for grad in some:
            p.grad, optimizer.decay = grad.clone(), 0.2
            optimizer.step()

    through, optimizer = fresh(values)
    advance(through, optimizer, gradients)
    first, optimizer = fresh(values)
    advance(first, optimizer, gradients[:3])
    second, resumed = fresh(first.detach())
    resumed.load_state_dict(optimizer.state_dict())
    advance(second, resumed, gradients[3:])
    assert torch.equal(through, second)


def test_fixed_mask_without_decay_and_teacher_is_masked_fine_tuning():
    options = {"every": 0, "decay": 0.0, "weight_decay": 0.0}
    sparse, method, ctx = attached(**options)
    plain, other, twins = attached(**options)
    masks = [keep_of(t).clone() for t in ctx.targets]
    other.finish(plain)  # pruned weights are 0 from here on and their gradients are masked
    ours = method.optimizer(method.param_groups(sparse))
    weights = {t.module.weight: m for t, m in zip(twins.targets, masks, strict=True)}
    theirs = AnnealedAdamW(other.param_groups(plain), weights)
    sparse.eval(), plain.eval()
    for t in range(5):
        method.step(sparse, t / 5)
        method.loss(sparse, batch(t), sparse(**batch(t))).backward()
        plain(**batch(t)).loss.backward()
        for weight, keep in weights.items():
            weight.grad *= keep
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    method.finish(sparse)
    start, _, _ = helpers.attached(helpers.cell("dense"))
    for name, value in plain.state_dict().items():
        assert torch.allclose(sparse.state_dict()[name], value, atol=1e-6), name
    moved = sparse.state_dict()["classifier.weight"] - start.state_dict()["classifier.weight"]
    assert moved.abs().max() > 1e-4


# --- distillation


def test_kd_is_0_when_student_equals_teacher():
    logits = torch.randn(6, 9, generator=generator())
    assert kd_loss(logits, logits.clone()).abs() < 1e-7
    assert kd_loss(logits, logits + 3.0).abs() < 1e-6  # a softmax knows no constants


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kd_is_the_formula(temperature):
    student, teacher = torch.randn(2, 5, 4, generator=generator()).unbind(0)
    expected = ast.kd(student.tolist(), teacher.tolist(), temperature)
    assert float(kd_loss(student, teacher, temperature=temperature)) == pytest.approx(
        expected, 1e-5
    )


def test_kd_of_tokens_is_a_mean_over_predicted_tokens():
    student, teacher = torch.randn(2, 3, 5, 7, generator=generator()).unbind(0)
    mask = torch.rand(3, 5, generator=generator()) < 0.6
    expected = ast.kd(student[mask].tolist(), teacher[mask].tolist(), 2.0)
    assert float(kd_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)
    student[~mask] = float("nan")
    assert float(kd_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(kd_loss(teacher, teacher, torch.zeros(3, 5, dtype=torch.bool))) == 0.0


def test_kd_trains_the_student_alone_and_toward_the_teacher():
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
    kd_loss(student, teacher).backward()
    # T²·∂KL/∂z = T·(softmax(z/T) − softmax(teacher/T))
    expected = 2.0 * (torch.full((3,), 1 / 3) - (teacher[0] / 2).softmax(0))
    assert torch.allclose(student.grad[0], expected, atol=1e-6)
    assert teacher.grad is None


def test_kd_of_a_regression_is_the_squared_difference():
    assert float(kd_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]))) == 2.5


def test_a_causal_lm_is_distilled_where_it_predicts_a_token_that_counts():
    config = AutoConfig.for_model("gpt2", **catalog.PLACES["tiny-gpt2"].tiny)
    torch.manual_seed(0)
    student, teacher = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    ids = torch.randint(5, 200, (2, 6), generator=generator())
    attention = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    labels = ids.masked_fill(attention == 0, -100)
    labels[0, 2] = -100
    inputs = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    with torch.no_grad():
        ours, theirs = (
            m(input_ids=ids, attention_mask=attention).logits for m in (student, teacher)
        )
        found = distilled(teacher, inputs, ours)
    # Position t predicts token t + 1: row 0 all but token 2, row 1 the first four tokens.
    places = [(0, 0), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    rows = [[logits[b, t].tolist() for b, t in places] for logits in (ours, theirs)]
    assert float(found) == pytest.approx(ast.kd(*rows, 2.0), rel=1e-4)
    whole = {**inputs, "labels": ids, "attention_mask": attention}
    unpadded = distilled(teacher, whole, ours)
    rows = [[lg[b, t].tolist() for b, t in [*places, (0, 1)]] for lg in (ours, theirs)]
    assert float(unpadded) == pytest.approx(ast.kd(*rows, 2.0), rel=1e-4)


def test_the_loss_mixes_teacher_and_task():
    cell = helpers.cell("ast", pattern="2:4", kd=0.25)
    student, method, _ = with_teacher(cell)
    inputs = batch()
    outputs = student.eval()(**inputs)
    with torch.no_grad():
        expected = ast.kd(outputs.logits.tolist(), method.teacher(**inputs).logits.tolist(), 2.0)
    loss = method.loss(student, inputs, outputs)
    assert loss.item() == pytest.approx(0.25 * expected + 0.75 * outputs.loss.item(), rel=1e-4)
    loss.backward()
    assert not method.teacher.training
    assert all(p.grad is None for p in method.teacher.parameters())


def with_teacher(cell):
    """As helpers.attached, with an untrained model for a teacher."""
    teacher = helpers.load(cell.model, Job.resolve(cell).task, cell.seed + 1).model
    teacher.eval().requires_grad_(False)
    return helpers.attached(cell, teacher=lambda: teacher)


def test_kd_0_loads_no_teacher():
    def none():
        raise AssertionError("the teacher was loaded")

    model, method, _ = helpers.attached(helpers.cell("ast", pattern="2:4", kd=0.0), teacher=none)
    outputs = model(**batch())
    assert method.loss(model, batch(), outputs) is outputs.loss


# --- SLoRB


def pruned_part(o=24, i=64):
    weight = torch.randn(o, i, generator=generator(7), dtype=torch.float64)
    return weight, weight.masked_fill(keep_n_m(weight.abs(), 2, 4), 0.0)


def test_slorb_mean_is_the_least_squares_fit_of_what_was_pruned():
    _, pruned = pruned_part()
    X, Q = slorb(pruned, 16, "mean", None)
    assert torch.equal(X.sum(0), torch.ones(64, dtype=torch.float64))
    assert bool((X[1, 16:32] == 1).all())
    best = torch.linalg.lstsq(X.t(), pruned.t()).solution.t()
    assert torch.allclose(Q, best, atol=1e-12)
    assert (pruned - Q @ X).norm() < pruned.norm()


def test_slorb_k_1_restores_the_weight():
    weight, pruned = pruned_part()
    X, Q = slorb(pruned, 1, "mean", None)
    assert torch.equal(weight - pruned + Q @ X, weight)


def test_slorb_sum_adds_and_xavier_starts_at_nothing():
    _, pruned = pruned_part()
    _, Q = slorb(pruned, 16, "sum", None)
    assert torch.allclose(Q[:, 1], pruned[:, 16:32].sum(1))
    X, Q = slorb(pruned, 16, "xavier", generator())
    assert not Q.any()
    assert X.abs().max() <= math.sqrt(6 / (4 + 64))
    assert X.std() == pytest.approx(math.sqrt(2 / (4 + 64)), rel=0.1)


@every
def test_slorb_with_k_1_computes_what_the_dense_model_does(model):
    sparse, _, _ = attached(model, slorb="mean", slorb_k=1)
    dense, _, _ = helpers.attached(helpers.cell("dense", model))
    assert torch.allclose(helpers.logits(sparse), helpers.logits(dense), atol=1e-5)


@every
def test_slorb_stays_a_trained_branch_beside_a_2_4_weight(model, tmp_path):
    options = {"slorb": "mean", "kd": 0.0, "budget__steps": 4, "budget__batch": 4}
    cell = helpers.cell("ast", model, pattern="2:4", **options)
    run_cell(cell.dense, lambda *_: None)
    record = run_cell(cell, lambda *_: None)
    assert record.sparsity.pattern_ok
    assert record.sparsity.overall == pytest.approx(0.5, abs=1e-3)
    fit = fit_cell(cell, lambda *_: None)
    for target in targets.prunable(fit.model):
        initial = slorb(torch.zeros(target.shape), 16, "mean", None)[0]
        assert not torch.equal(target.module.branch.down, initial)
    fit.model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path, type(fit.model))
    assert torch.allclose(helpers.logits(again), helpers.logits(fit.model), atol=1e-6)


def test_a_fixed_projection_is_not_trained():
    sparse, method, ctx = attached(slorb="mean", train_projection=False)
    held = {id(p) for group in method.param_groups(sparse) for p in group["params"]}
    for target in ctx.targets:
        assert id(target.module.branch.down) not in held
        assert id(target.module.branch.up) in held


# --- counts


def meta(kind, **params):
    """A full-size model on the meta device with AST attached."""
    auto = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(kind))
    found = targets.prunable(model)
    cell, budget = helpers.cell("ast", pattern="2:4"), Budget(steps=10, batch=1, length=8)
    ctx = Context(cell, budget, found, None, None, None, torch.device("meta"))
    method = AST(AST.Params(kd=0.0, **params))
    method.attach(model, ctx)
    held = count_trainable(model, method.param_groups(model))
    return model, held.body + held.head


def test_gpt2_counts():
    assert meta("gpt2")[1] == 124_439_808
    assert meta("gpt2", slorb="mean")[1] == 138_153_216
    assert meta("gpt2", slorb="mean", train_projection=False)[1] == 124_439_808 + 5_308_416
    model, _ = meta("gpt2")
    shapes = [t.shape for t in targets.prunable(model)]
    kept = {s: int(keep_n_m(torch.rand(s), 2, 4).sum()) for s in set(shapes)}
    assert sum(kept[s] for s in shapes) == 42_467_328


def test_bert_base_branch_counts():
    model, held = meta("bert", slorb="mean")
    branches = [t.module.branch for t in targets.prunable(model)]
    assert sum(b.up.numel() for b in branches) == 5_308_416
    assert sum(b.down.numel() for b in branches) == 9_289_728
    assert held == 109_483_778 + 5_308_416 + 9_289_728


def test_exported_zeros_are_plus_zero():
    model, method, ctx = attached()
    method.finish(model)
    for target in ctx.targets:
        assert not bool((target.stored.signbit() & (target.stored == 0)).any())


@pytest.mark.parametrize(("task", "lr"), [("tiny/reviews", 1.25e-5), ("tiny/wikitext", 2e-4)])
def test_language_models_learn_faster_than_new_heads(task, lr):
    loaded = helpers.load("tiny-gpt2", registry.task(task), 1)
    for params, expected in ((AST.Params(), lr), (AST.Params(lr=1e-3), 1e-3)):
        method = AST(params)
        groups = method.param_groups(loaded.model)
        assert {group["lr"] for group in groups} == {expected, expected * 768 / 64}
        assert method.params.lr == expected


def rms_of_steps(make, steps=600):
    """The rms of the updates that white noise as a gradient makes, after a start, over lr."""
    g = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(2000, generator=g))
    optimizer = make(p)
    squares = []
    for t in range(steps):
        p.grad = torch.randn(2000, generator=g)
        before = p.detach().clone()
        optimizer.step()
        if t > steps // 2:
            squares.append((p.detach() - before).square().mean())
    return float(torch.stack(squares).mean().sqrt()) / 1e-3


def test_a_new_head_learns_at_a_quarter_of_the_dense_rate_as_its_steps_are_four_times_as_long():
    betas = (0.9, 0.95)
    adam = rms_of_steps(lambda p: torch.optim.AdamW([p], 1e-3, (0.9, 0.999), weight_decay=0.0))
    masks = lambda p: {p: torch.ones_like(p)}  # noqa: E731
    ours = rms_of_steps(lambda p: AnnealedAdamW([p], masks(p), 1e-3, betas))
    assert adam == pytest.approx(((1 - 0.9) / (1 + 0.9)) ** 0.5, rel=0.02)  # 0.23
    assert ours == pytest.approx(1.0, rel=0.05)
    assert NEW_HEAD_LR / Dense.Params().lr == pytest.approx(adam / ours, rel=0.15)


# --- the code's other masks


def test_wandas_metric_keeps_by_weight_times_input_norm_of_the_dense_model():
    model, method, ctx = attached(metric="wanda")
    _, plain, _ = attached()
    dense, _, _ = helpers.attached(helpers.cell("dense", "tiny-bert"))
    norms = {}

    def note(name):
        def hook(module, args):
            x = args[0].flatten(0, 1)[real]
            norms[name] = norms.get(name, 0.0) + x.square().sum(0)

        return hook

    for target in targets.prunable(dense):
        target.module.register_forward_pre_hook(note(target.name))
    with torch.no_grad():
        for batch in ctx.calibration():
            real = batch["attention_mask"].bool().flatten()
            dense.eval()(**batch)
    others = [mask.keep for _, mask, _ in plain.layers]
    for (target, mask, held), other in zip(method.layers, others, strict=True):
        weight = held.original.detach()
        scores = weight.abs() * norms[target.name].sqrt()
        assert torch.allclose(method.norms[target.name], norms[target.name].sqrt(), rtol=1e-4)
        assert torch.equal(mask.keep.bool(), keep_n_m(scores, 2, 4))
        assert not torch.equal(mask.keep, other)
    # The norms stay those of the dense model; the weights are today's.
    with torch.no_grad():
        target, mask, held = method.layers[0]
        held.original.normal_()
        method.step(model, 1 / method.steps)
        scores = held.original.abs() * method.norms[target.name]
        assert torch.equal(mask.keep.bool(), keep_n_m(scores, 2, 4))


@pytest.mark.parametrize("metric", ["magnitude", "wanda"])
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_unstructured_masks_are_equal_in_every_row_and_exact(model, metric):
    cell = helpers.cell("ast", model, 0.5, "unstructured", kd=0.0, metric=metric)
    sparse, method, ctx = helpers.attached(cell)
    method.finish(sparse)
    for target in ctx.targets:
        zeros = (target.weight == 0).sum(dim=1)
        assert set(zeros.tolist()) == {target.shape[1] // 2}
        kept = target.weight != 0
        if metric == "magnitude":
            dense = helpers.attached(helpers.cell("dense", model))[2].targets
            weight = next(t.weight for t in dense if t.name == target.name).abs()
            least = weight.masked_fill(~kept, 9.0).amin(dim=1)
            assert bool((weight.masked_fill(kept, 0.0).amax(dim=1) <= least).all())
