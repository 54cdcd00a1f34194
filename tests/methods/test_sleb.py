"""SLEB against every choice tried by hand (methods/README.md, sleb)."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sparsebench
from bench.weights import dead
from bench.weights.blocks import blocks, stack
from methods import sleb
from tests import helpers
from tests.field import families
from tests.test_dead import made

IDS = torch.tensor(families.ids(6, 16))


def nll(model, gone):
    """The loss on the calibration text of a model whose list of blocks lacks `gone`."""
    name, whole = stack(model)
    parent, _, leaf = name.rpartition(".")
    kept = nn.ModuleList(block for number, block in enumerate(whole) if number not in gone)
    model.config.num_hidden_layers = len(kept)
    setattr(model.get_submodule(parent), leaf, kept)
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits
    setattr(model.get_submodule(parent), leaf, whole)
    model.config.num_hidden_layers = len(whole)
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))


def greedy(model, n):
    gone = []
    for _ in range(n):
        left = [number for number in range(len(blocks(model))) if number not in gone]
        gone.append(min(left, key=lambda number: nll(model, [*gone, number])))
    return gone


def unlike(kind, depth=5):
    key = {"gpt2": "n_layer"}.get(kind, "num_hidden_layers")
    model = made(kind, **{key: depth})
    for number, block in enumerate(blocks(model)):
        for p in block.parameters():
            if p.ndim == 2:
                p.data.mul_(4.0 + 3 * number)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
def test_each_step_drops_the_block_that_is_missed_least(kind):
    model = unlike(kind)
    expected = greedy(model, 3)
    sparsebench.prune(model, "sleb", sparsity=0.6, calibration=IDS.tolist())
    assert dead.silent(model) == sorted(expected)


def test_the_losses_are_those_of_models_without_the_block(monkeypatch):
    model = unlike("llama")
    dead.silence(model, [1])
    batch = [({"input_ids": IDS}, IDS[:, 1:])]
    expected = [nll(model, [1, number]) * IDS[:, 1:].numel() for number in (0, 2, 3, 4)]
    with torch.no_grad():
        found = sleb.losses_without(model, batch, [0, 2, 3, 4])
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(sleb, "LOGITS", 1)
    apart = sleb._small(model, [{"input_ids": IDS}])
    assert [len(b["input_ids"]) for b in apart] == [1] * len(IDS)
    assert torch.equal(torch.cat([b["input_ids"] for b in apart]), IDS)


def test_at_once_drops_several_of_one_measurement():
    model = unlike("llama")
    losses = [nll(model, [number]) for number in range(5)]
    sparsebench.prune(model, "sleb", sparsity=0.6, calibration=IDS.tolist(), at_once=3)
    assert dead.silent(model) == sorted(sorted(range(5), key=losses.__getitem__)[:3])


def test_a_classifier_is_to_put_out_what_it_did():
    start, _, ctx = helpers.attached(helpers.cell("dense", "tiny-gpt2"))
    model, _, _ = helpers.attached(helpers.cell("sleb", "tiny-gpt2", sparsity=0.5))
    batches = list(ctx.calibration())
    losses = []
    with torch.no_grad():
        dense = [start.eval()(**b).logits.log_softmax(-1) for b in batches]
        for number in range(len(blocks(start))):
            twin, _, _ = helpers.attached(helpers.cell("dense", "tiny-gpt2"))
            dead.silence(twin.eval(), [number])
            now = [twin(**b).logits.log_softmax(-1) for b in batches]
            pairs = zip(dense, now, strict=True)
            losses.append(sum(float((a.exp() * (a - b)).sum()) for a, b in pairs))
    n = len(losses) // 2
    assert dead.silent(model) == sorted(sorted(range(len(losses)), key=losses.__getitem__)[:n])
