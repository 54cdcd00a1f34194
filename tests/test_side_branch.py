"""A low-rank branch beside a weight: counted, saved and restored, and no target."""

import pytest
import torch

from bench.api import BenchError
from bench.core.record_parts import Trainable
from bench.costs import deployed
from bench.costs.macs import count_macs
from bench.costs.parameters import count_params
from bench.sources import loading
from bench.weights import side_branch, slicing, targets
from tests import helpers

RANK = 3
every = pytest.mark.parametrize("name", helpers.ARCHITECTURES)


def branched(name, seed=0):
    """A tiny model with branches at every second target."""
    model, _, ctx = helpers.attached(helpers.cell("dense", name))
    g = torch.Generator().manual_seed(seed)
    chosen = ctx.targets[::2]
    for target in chosen:
        o, i = target.shape
        up, down = (0.3 * torch.randn(s, generator=g) for s in ((o, RANK), (RANK, i)))
        side_branch.add(target.module, down, up)
    return model, chosen


@every
def test_it_adds_what_its_product_would_add_to_the_weight(name):
    model, chosen = branched(name)
    before = helpers.logits(model)
    merged, _, ctx = helpers.attached(helpers.cell("dense", name))
    for target, twin in zip(chosen, ctx.targets[::2], strict=True):
        low = target.module.branch
        twin.write(twin.weight + low.up.detach() @ low.down.detach())
    assert torch.allclose(helpers.logits(merged), before, atol=1e-5)
    plain, _, _ = helpers.attached(helpers.cell("dense", name))
    assert not torch.allclose(helpers.logits(plain), before, atol=1e-3)


@every
def test_it_survives_saving(name, tmp_path):
    model, chosen = branched(name)
    model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path, type(model))
    assert torch.allclose(helpers.logits(again), helpers.logits(model), atol=1e-6)
    assert sum(isinstance(m, side_branch.Branch) for m in again.modules()) == len(chosen)


@every
def test_it_counts_as_parameters_and_macs_but_is_no_target(name):
    model, chosen = branched(name)
    plain, _, ctx = helpers.attached(helpers.cell("dense", name))
    extra = sum(RANK * sum(t.shape) for t in chosen)
    assert [t.shape for t in targets.prunable(model)] == [t.shape for t in ctx.targets]
    nothing = Trainable(body=0, head=0)
    assert count_params(model, nothing).stored == count_params(plain, nothing).stored + extra
    assert count_macs(model, 20).dense == count_macs(plain, 20).dense + 20 * extra
    for target in targets.prunable(model):
        target.write(torch.zeros(target.shape))
    pruned = sum(t.weight.numel() for t in ctx.targets)
    found = count_macs(model, 20)
    assert found.dense - found.effective == 20 * pruned  # the branches' products are all left


@every
def test_what_a_branch_reads_or_writes_is_not_taken_out(name):
    model, _ = branched(name)
    for target in targets.prunable(model):
        target.write(torch.zeros(target.shape))  # only the branches are left
    made, form = deployed.deployed(model, torch.float32)
    assert form == "dense"
    assert torch.equal(helpers.logits(made), helpers.logits(model))
    with pytest.raises(BenchError, match="low-rank branches"):
        slicing.slice_units(model)
