"""What methods share that give each block its own sparsity: `owl`, `dlp`, `alphapruning`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.weights import targets
from methods.shared.block_allocation import Allocated, levels, stretched
from methods.shared.masks import pruned_count
from tests import helpers

BASES = ("wanda", "sparsegpt", "magnitude")
METHODS = [name for name, kind in helpers.KINDS.items() if issubclass(kind, Allocated)]


def test_the_worked_example():
    found = levels(stretched([5, 3, 2, 8], 0.16), [1] * 4, 0.7)
    # D − min over its range is (1/2, 1/6, 0, 1), of mean 5/12; times 2λ = .16.
    expected = [0.7 - 0.16 * (d - 5 / 12) for d in (1 / 2, 1 / 6, 0, 1)]
    assert found == pytest.approx(expected)
    assert [round(v, 3) for v in found] == [0.687, 0.74, 0.767, 0.607]


blocks = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(blocks, st.floats(0.01, 0.99), st.floats(0.0, 1.0))
def test_mean_is_the_sparsity_and_denser_blocks_have_less_of_it(found, sparsity, width):
    values, sizes = zip(*found, strict=True)
    got = levels(stretched(list(values), width), list(sizes), sparsity)
    mean = sum(v * n for v, n in zip(got, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity, abs=1e-9)
    assert all(-1e-12 <= v <= 0.999 + 1e-12 for v in got)
    assert max(got) - min(got) <= width + 1e-12
    for a, d in zip(got, values, strict=True):
        for b, e in zip(got, values, strict=True):
            assert a <= b + 1e-12 or d <= e


def test_the_band_shrinks_no_more_than_it_must():
    # At 0.95 a band of ±0.15 would reach 1.1: it ends at 0.999, and the mean stays.
    assert levels([0.0, 0.3], [1, 1], 0.95) == pytest.approx([0.999, 0.901])
    # At 0.1 the denser block would go below 0.
    assert levels([0.0, 0.3], [1, 1], 0.1) == pytest.approx([0.2, 0.0])
    assert levels([0.0, 0.3], [1, 1], 0.5) == pytest.approx([0.65, 0.35])


def test_equal_blocks_are_uniform():
    assert levels(stretched([3.0, 3.0], 0.16), [5, 9], 0.6) == [0.6, 0.6]
    assert levels([0.1] * 7, [3, 5, 7, 11, 13, 17, 19], 0.6) == pytest.approx([0.6] * 7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_all_of_the_model_is_exact_and_blocks_follow_their_levels(model, base, name):
    sparse, method, ctx = helpers.attached(helpers.cell(name, model, 0.7, base=base))
    found = helpers.zeros(sparse)
    total = sum(t.weight.numel() for t in ctx.targets)
    assert sum(found.values()) == pruned_count(total, 0.7)
    assert max(method.levels) > min(method.levels)
    for level, block in zip(method.levels, targets.blocks(sparse), strict=True):
        inside = {id(m) for m in block.modules()}
        mine = [t for t in ctx.targets if id(t.module) in inside]
        n = sum(t.weight.numel() for t in mine)
        assert abs(sum(found[t.name] for t in mine) - level * n) <= 1
        for t in mine:
            assert abs(found[t.name] - level * t.weight.numel()) <= 1


@pytest.mark.parametrize("name", METHODS)
def test_levels_come_from_the_dense_model_and_do_not_depend_on_the_base(name):
    found = [
        helpers.attached(helpers.cell(name, "tiny-bert", 0.7, base=base))[1].levels
        for base in BASES
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("base", BASES)
def test_where_blocks_are_equal_the_base_itself_prunes(base):
    # At 0.5 no count is rounded, so none moves from one matrix to the next.
    flat, _, _ = helpers.attached(helpers.cell("owl", "tiny-bert", 0.5, base=base, band=0.0))
    plain, _, _ = helpers.attached(helpers.cell(base, "tiny-bert", 0.5))
    for ours, theirs in zip(targets.prunable(flat), targets.prunable(plain), strict=True):
        assert torch.equal(ours.weight, theirs.weight), ours.name
