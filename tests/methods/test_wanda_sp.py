"""Wanda-sp against its definition, head by head and neuron by neuron (methods/README.md)."""

import pytest
import torch

import sparsebench
from bench.weights import slicing
from bench.weights.blocks import blocks
from tests.field import families
from tests.test_dead import made

IDS = families.ids(6, 16)
KINDS = ("llama", "gpt2", "opt")


def inputs_of(model, module):
    """All inputs of a module on the calibration text, (tokens, in)."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for row in IDS:
            model(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(seen)


def readers(model, kind, block):
    """The matrices (out, in) that read heads and neurons, with the columns of each unit."""
    inside = blocks(model)[block]
    if kind == "llama":  # 4 query heads of size 8 share 2 key heads
        heads, neurons = inside.self_attn.o_proj, inside.mlp.down_proj
    elif kind == "gpt2":
        heads, neurons = inside.attn.c_proj, inside.mlp.c_proj
    else:
        heads, neurons = inside.self_attn.out_proj, inside.fc2
    share = 16 if kind == "llama" else 8
    columns = [range(at, at + share) for at in range(0, 32, share)]
    width = neurons.weight.shape[0 if kind == "gpt2" else 1]
    return (heads, columns), (neurons, [[j] for j in range(width)])


def matrix(kind, module):
    return (module.weight.t() if kind == "gpt2" else module.weight).detach().clone()


def dead_units(kind, weight, columns):
    return [u for u, inside in enumerate(columns) if not weight[:, list(inside)].any()]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_units_of_the_smallest_norms_go(kind, norm):
    model = made(kind)
    # The first block sees the inputs of the dense model.
    expected = []
    for (module, columns), share in zip(readers(model, kind, 0), (0.5, 0.5), strict=True):
        weight, x = matrix(kind, module), inputs_of(model, module)
        scores = []
        for inside in columns:
            terms = [
                float(weight[i, j].abs() * x[:, j].norm())
                for i in range(len(weight))
                for j in inside
            ]
            scores.append(sum(t * t for t in terms) if norm == "l2" else sum(terms))
        order = sorted(range(len(scores)), key=scores.__getitem__)
        expected.append(sorted(order[: round(share * len(order))]))
    sparsebench.prune(model, "wanda-sp", sparsity=0.5, calibration=IDS, norm=norm)
    found = [dead_units(kind, matrix(kind, m), c) for m, c in readers(model, kind, 0)]
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_loses_the_same_share_and_the_slice_is_real(kind, tmp_path):
    model = made(kind)
    whole = [(h.count, n.count) for h, n in slicing.units(model)]
    sparsebench.prune(model, "wanda-sp", sparsity=0.5, calibration=IDS)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    sparsebench.export(model, "hf", tmp_path / "small", sliced=True)
    again = sparsebench.load(tmp_path / "small")
    left = [(h.count, n.count) for h, n in slicing.units(again)]
    assert left == [(h // 2, n // 2) for h, n in whole]
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)


def test_later_blocks_see_what_the_pruned_ones_put_out():
    model, twin = made("llama"), made("llama")
    sparsebench.prune(model, "wanda-sp", "neurons", sparsity=0.5, calibration=IDS)
    blocks(twin)[0].load_state_dict(blocks(model)[0].state_dict())
    module, columns = readers(twin, "llama", 1)[1]
    weight, x = matrix("llama", module), inputs_of(twin, module)
    scores = ((weight.abs() * x.norm(dim=0)) ** 2).sum(0)
    expected = sorted(scores.argsort()[:32].tolist())
    module, columns = readers(model, "llama", 1)[1]
    assert dead_units("llama", matrix("llama", module), columns) == expected


@pytest.mark.parametrize("pattern", ["heads", "neurons"])
def test_a_pattern_of_one_kind_leaves_the_other(pattern):
    model = made("llama")
    sparsebench.prune(model, "wanda-sp", pattern, sparsity=0.5, calibration=IDS)
    alive = [(len(h.alive()), len(n.alive())) for h, n in slicing.units(model)]
    assert alive == [(1, 64) if pattern == "heads" else (2, 32)] * 3


def test_models_whose_heads_are_unknown_are_refused():
    with pytest.raises(sparsebench.BenchError, match="cannot find heads and neurons"):
        sparsebench.prune(made("gpt_neox"), "wanda-sp", sparsity=0.5, calibration=IDS)
