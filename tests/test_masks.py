import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.api import BenchError
from bench.core.pattern import UNSTRUCTURED
from methods.shared.masks import (
    keep_largest,
    keep_largest_global,
    keep_largest_per_row,
    keep_masks,
    keep_n_m,
    kth_smallest,
    pruned_count,
)
from methods.shared.schedules import cubic
from tests.oracles.topk import keep_by_sort


@pytest.mark.parametrize(
    ("n", "sparsity", "k"),
    [
        (100, 0.29, 29),
        (16384, 0.7, 11468),
        (589824, 0.9, 530841),
        (2359296, 0.9, 2123366),
        (7, 0, 0),
    ],
)
def test_pruned_count_is_exact(n, sparsity, k):
    assert pruned_count(n, sparsity) == k


# Few distinct values make many ties, which is where selections go wrong.
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_keep_largest_equals_stable_sort_with_ties(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(0, len(values)))
    assert torch.equal(keep_largest(scores, k), keep_by_sort(scores, k))


def _distributions():
    g = torch.Generator().manual_seed(3)
    n = 1536 * 384
    yield "normal", torch.randn(n, generator=g)
    yield "few values", torch.randint(0, 50, (n,), generator=g).float()
    yield "sorted", torch.arange(n).float()
    yield "sorted, of odd length", torch.arange(n + 7).float()
    yield "constant", torch.ones(n)
    # Periodic with a matrix' width: a strided sample could see one column only.
    yield "columns", torch.arange(384.0).repeat(1536) + torch.rand(n, generator=g) * 0.01
    yield "half zero", torch.randn(n, generator=g).clamp(min=0)
    yield "heavy tail", torch.randn(n, generator=g) ** 9


@pytest.mark.parametrize(("name", "scores"), list(_distributions()))
@pytest.mark.parametrize("sparsity", [1e-5, 0.1, 0.5, 0.9, 0.99999])
def test_fast_selection_equals_sort_on_large_matrices(name, scores, sparsity):
    k = pruned_count(scores.numel(), sparsity)
    assert kth_smallest(scores, max(k, 1)) == scores.sort().values[max(k, 1) - 1]
    keep = keep_largest(scores, k)
    assert int((~keep).sum()) == k
    assert torch.equal(keep, keep_by_sort(scores, k))


def test_transposed_input_gives_the_same_mask():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_largest(scores.t(), 12), keep_by_sort(scores.t().contiguous(), 12))


def test_rows_are_pools_of_their_own():
    scores = torch.randint(0, 4, (20, 33), generator=torch.Generator().manual_seed(1)).float()
    keep = keep_largest_per_row(scores, 11)
    for row, kept in zip(scores, keep, strict=True):
        assert torch.equal(kept, keep_by_sort(row, 11))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 4), (1, 2), (5, 16), (9, 24)])
def test_n_m_keeps_n_largest_of_every_group(n, m):
    scores = torch.randint(0, 5, (10, 48), generator=torch.Generator().manual_seed(2)).float()
    keep = keep_n_m(scores, n, m)
    for group, kept in zip(scores.view(-1, m), keep.view(-1, m), strict=True):
        assert torch.equal(kept, keep_by_sort(group, m - n))


def test_n_m_refuses_a_width_that_is_no_multiple():
    with pytest.raises(BenchError, match="lay has 10 inputs, not a multiple of 4"):
        keep_n_m(torch.rand(3, 10), 2, 4, name="lay")


def test_global_pool_counts_over_all_matrices():
    matrices = [torch.full((4, 5), 0.1), torch.full((10, 3), 0.2)]
    keep = keep_largest_global(matrices, 0.6)
    assert [int((~k).sum()) for k in keep] == [20, 10]


def test_unknown_pool_is_named():
    with pytest.raises(BenchError, match="unknown pool 'tower'"):
        keep_masks({"a": torch.rand(2, 4)}, UNSTRUCTURED, 0.5, "tower")


def test_cubic_schedule():
    values = [cubic(t, 10, 70, 0.0, 0.9) for t in range(101)]
    assert values[:11] == [0.0] * 11
    assert values[70:] == [0.9] * 31
    assert all(a <= b for a, b in itertools.pairwise(values))
    # Half-way: 1 − (1/2)³ = 7/8 of the way.
    assert cubic(40, 10, 70, 0.0, 0.9) == pytest.approx(0.9 * 7 / 8)
    with pytest.raises(ValueError, match="end after it starts"):
        cubic(0, 5, 5, 0, 1)
