"""Properties of OWL (methods/README.md, owl)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from bench.weights import targets
from methods.owl import OWL, block_sparsities, outlier_fraction
from methods.shared.masks import pruned_count
from tests import helpers

BASES = ("wanda", "sparsegpt", "magnitude")


def test_the_worked_example():
    levels = block_sparsities([5, 3, 2, 8], [1] * 4, 0.7, 0.08)
    # D − min over its range is (1/2, 1/6, 0, 1), of mean 5/12; times 2λ = .16.
    expected = [0.7 - 0.16 * (d - 5 / 12) for d in (1 / 2, 1 / 6, 0, 1)]
    assert levels == pytest.approx(expected)
    assert [round(v, 3) for v in levels] == [0.687, 0.74, 0.767, 0.607]


blocks = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(blocks, st.floats(0.01, 0.99), st.floats(0.01, 0.5))
def test_mean_is_the_sparsity_and_more_outliers_mean_less_of_it(found, sparsity, band):
    outliers, sizes = zip(*found, strict=True)
    levels = block_sparsities(list(outliers), list(sizes), sparsity, band)
    mean = sum(v * n for v, n in zip(levels, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity, abs=1e-9)
    assert all(-1e-12 <= v < 1 for v in levels)
    assert max(levels) - min(levels) <= 2 * band + 1e-12
    for a, d in zip(levels, outliers, strict=True):
        for b, e in zip(levels, outliers, strict=True):
            assert a <= b + 1e-12 or d <= e


def test_equal_outliers_are_uniform():
    assert block_sparsities([3.0, 3.0], [5, 9], 0.6, 0.08) == [0.6, 0.6]


def test_outliers_are_counted_over_the_whole_block_and_scale_free():
    scores = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[1.0, 26.0]])]
    # The mean of the five is 6: 26 is above 4 times that, not above 5 times.
    assert outlier_fraction(scores, 4) == pytest.approx(1 / 5)
    assert outlier_fraction(scores, 5) == 0
    assert outlier_fraction([64 * s for s in scores], 4) == pytest.approx(1 / 5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_all_of_the_model_is_exact_and_blocks_follow_their_levels(model, base):
    sparse, method, ctx = helpers.attached(helpers.cell("owl", model, 0.7, base=base))
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


def test_levels_come_from_the_dense_model_and_do_not_depend_on_the_base():
    levels = [
        helpers.attached(helpers.cell("owl", "tiny-bert", 0.7, base=base))[1].levels
        for base in BASES
    ]
    assert levels[0] == levels[1] == levels[2]


def test_a_block_with_outlying_inputs_stays_denser():
    cell = helpers.cell("owl", "tiny-bert", 0.7)
    job = Job.resolve(cell)
    loaded = loading.load_for_task(job.place, job.task, 1)
    loaded.tok.model_max_length = 32
    norm = loaded.model.bert.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        norm.weight[:2] *= 60.0  # two inputs of block 1 stand out
    method = OWL()
    method.attach(loaded.model, make_context(job, loaded, torch.device("cpu")))
    assert method.levels[1] < method.levels[0]
    assert method.levels[0] - method.levels[1] == pytest.approx(0.16)
