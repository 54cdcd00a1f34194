"""Refitting pruned blocks to their dense outputs (methods/README.md, reconstruction)."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.api import BenchError
from bench.planning.job import Job
from bench.weights import targets
from bench.weights.blocks import put_out
from methods.shared import one_shot
from methods.shared.reconstruct import Block, ReconstructParams, refit
from tests import helpers
from tests.field import families
from tests.methods.test_blockwise import batches, build, context, peak

every_method = pytest.mark.parametrize("name", helpers.CALIBRATED)


def made(name, **params):
    kind = helpers.CALIBRATED[name]
    return kind(kind.Params(**params))


def linear_block(transposed, dtype=torch.float32):
    """A pruned matrix, (5, 12), as a block, and its dense outputs on three batches."""
    torch.manual_seed(0)
    mix = torch.eye(12) + 0.15 * torch.randn(12, 12)
    inputs = [torch.randn(2, 10, 12) @ mix for _ in range(3)]
    module = (Conv1D(5, 12) if transposed else nn.Linear(12, 5)).to(dtype)
    target = targets.Target("matrix", module)
    weight = torch.randn(5, 12)
    target.write(weight)
    inputs = [x.to(dtype) for x in inputs]
    with torch.no_grad():
        wanted = [module(x) for x in inputs]
    target.write(weight.masked_fill(torch.rand(5, 12) < 0.5, 0.0))
    runs = [partial(module, x) for x in inputs]
    return Block([target], runs, wanted), torch.cat(inputs).flatten(0, 1).double(), weight.double()


def least_squares(x, weight, keep):
    """The closed form: every row on its own support."""
    best = torch.zeros_like(weight)
    for row, kept in enumerate(keep):
        best[row, kept] = torch.linalg.lstsq(x[:, kept], x @ weight[row]).solution
    return best


@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_block_ends_at_the_least_squares_answer(transposed):
    block, x, weight = linear_block(transposed)
    pruned = block.targets[0].weight.clone()
    best = least_squares(x, weight, pruned != 0)
    lowest = (x @ (best - weight).T).square().mean()
    before = block.error()
    refit(block, 800, 0.02)
    found = block.targets[0].weight
    assert torch.equal(found == 0, pruned == 0)
    assert float(block.error()) == pytest.approx(float(lowest), rel=1e-3)
    assert torch.allclose(found.double(), best, atol=5e-3)
    assert lowest < 0.8 * before


def test_the_error_is_the_mean_over_all_numbers_of_all_batches():
    block, x, weight = linear_block(False)
    by_hand = (x @ (block.targets[0].weight.double() - weight).T).square().mean()
    assert float(block.error()) == pytest.approx(float(by_hand), rel=1e-4)
    uneven = Block([], [lambda: torch.ones(4), lambda: torch.zeros(12)], [torch.zeros(4)] * 2)
    uneven = uneven._replace(wanted=[torch.zeros(4), torch.zeros(12)])
    assert float(uneven.error()) == pytest.approx(4 / 16)


def test_a_refit_that_does_not_help_is_dropped():
    for lr in (1e3, 1e30):  # far away, and infinite
        block, _, _ = linear_block(False)
        pruned = block.targets[0].weight.clone()
        refit(block, 1, lr)
        assert torch.equal(block.targets[0].weight, pruned)


def test_a_dense_block_is_left_alone():
    block, _, weight = linear_block(False)
    block.targets[0].write(weight.float())
    refit(block, 3, 0.1)
    assert torch.equal(block.targets[0].weight, weight.float())


def test_bf16_weights_gather_updates_that_are_smaller_than_their_steps():
    (low, _, _), (full, _, _) = linear_block(False, torch.bfloat16), linear_block(False)
    before, pruned = low.error(), low.targets[0].weight.clone()
    for block in (low, full):
        refit(block, 400, 1e-3)  # less than half a step of all weights above 0.5
    found = low.targets[0].weight
    assert found.dtype == torch.bfloat16
    assert torch.equal(found == 0, pruned == 0)
    large = pruned.abs() > 0.5
    assert (found != pruned)[large].float().mean() > 0.9
    assert float(low.error()) == pytest.approx(float(full.error()), rel=0.02)
    assert low.error() < before


@every_method
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_every_block_comes_nearer_to_its_dense_outputs(kind, name, monkeypatch):
    dense, data = build(kind), list(batches(padded=False))
    pruned, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    errors = []

    def spied(block, passes, lr):
        before = float(block.error())
        refit(block, passes, lr)
        errors.append((before, float(block.error())))

    made(name).attach(pruned, context(pruned, data))
    monkeypatch.setattr(one_shot, "refit", spied)
    made(name, reconstruct=10, reconstruct_lr=1e-3).attach(refitted, context(refitted, data))
    assert len(errors) == 3
    assert all(after < 0.9 * before for before, after in errors)
    # Without the walk: inputs and outputs of the first block, from forward passes of the model.
    first = [first_error(model, dense, data) for model in (pruned, refitted)]
    assert first == pytest.approx(list(errors[0]), rel=1e-3)
    for ours, theirs in zip(targets.prunable(pruned), targets.prunable(refitted), strict=True):
        zeros = int((ours.weight == 0).sum()), int((theirs.weight == 0).sum())
        assert zeros[0] == zeros[1], ours.name
        if ours.module in list(targets.blocks(pruned)[0].modules()):
            assert torch.equal(ours.weight == 0, theirs.weight == 0), ours.name


def first_error(model, dense, data):
    """The mean squared difference of two models after their first block."""
    seen = []
    hooks = [
        targets.blocks(m)[0].register_forward_hook(lambda _, args, output: seen.append(output))
        for m in (dense, model)
    ]
    squares, count = 0.0, 0
    with torch.no_grad():
        for batch in data:
            seen.clear()
            for m in (dense, model):
                m.eval()(**batch)
            difference = put_out(seen[0]) - put_out(seen[1])
            squares, count = squares + float(difference.square().sum()), count + difference.numel()
    for hook in hooks:
        hook.remove()
    return squares / count


@pytest.mark.parametrize("name", [n for n, k in helpers.CALIBRATED.items() if "N:M" in k.patterns])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_n_m_groups_stay(name, pattern):
    model, data = build("llama"), list(batches())
    ctx = context(model, data, 0.5, pattern)
    made(name, reconstruct=2, reconstruct_lr=1e-3).attach(model, ctx)
    group = ctx.cell.pattern.n_m[1]
    for target in ctx.targets:
        assert bool(((target.weight.view(-1, group) == 0).sum(1) == group // 2).all()), target.name


@every_method
def test_nothing_but_the_targets_changes(name):
    model, data = build("gpt2").train(), list(batches())
    model.transformer.wpe.weight.requires_grad_(False)
    frozen = targets.prunable(model)[0].held.requires_grad_(False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    ctx = context(model, data)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    method = made(name, reconstruct=1, reconstruct_lr=1e-3)
    method.attach(model, ctx)
    assert torch.equal(torch.get_rng_state(), state)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{t.name}.weight" for t in ctx.targets}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert set(method.report) == {"forward_s", "prune_s", "reconstruct_s"}


@every_method
def test_the_same_seed_gives_the_same_bytes_and_zero_passes_change_nothing(name):
    results = []
    for params in ({"reconstruct": 1}, {"reconstruct": 1}, {"reconstruct_lr": 0.1}, {}):
        model = build("llama", 2)
        made(name, **params).attach(model, context(model, list(batches())))
        results.append(torch.cat([t.weight.flatten() for t in targets.prunable(model)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[3])


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "dlp"])
def test_peak_memory_does_not_grow_with_depth(name):
    kind = helpers.CALIBRATED[name]
    shallow, deep = (peak(kind, depth, reconstruct=1) for depth in (2, 24))
    assert deep <= shallow + 22 * 1024


def test_models_that_cannot_run_block_by_block_are_refused():
    model = families.build("albert", "MaskedLM", embedding_size=16)
    wanted = r"^AlbertForMaskedLM cannot be walked block by block; leave reconstruct at 0$"
    with pytest.raises(BenchError, match=wanted):
        made("wanda", reconstruct=1).attach(model, context(model, list(batches())))


def test_rounded_weights_are_not_refitted():
    Job.resolve(helpers.cell("sparsegpt", bits=4))
    with pytest.raises(BenchError, match="method sparsegpt: reconstruct undoes bits"):
        Job.resolve(helpers.cell("sparsegpt", bits=4, reconstruct=1))


def test_every_calibrated_method_has_the_option():
    assert all(issubclass(kind.Params, ReconstructParams) for kind in helpers.CALIBRATED.values())


def test_blocks_of_two_streams_and_of_tuples_can_be_refitted():
    for kind, more in (("t5", families.T5 | {"head": "Seq2SeqLM"}), ("gpt2", families.GPT2)):
        model = families.build(kind, **more)
        data = [{"input_ids": torch.tensor(families.ids())}]
        made("wanda", reconstruct=1, reconstruct_lr=1e-3).attach(model, context(model, data))
        zeros = [float((t.weight == 0).float().mean()) for t in targets.prunable(model)]
        assert zeros == pytest.approx([0.5] * len(zeros), abs=0.01)
