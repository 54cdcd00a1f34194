"""DLP against plain numpy (methods/README.md, dlp)."""

import numpy as np
import pytest
import torch

from bench.weights import targets
from methods.dlp import DLP, median
from tests.methods.test_blockwise import batches, build, context, direct_squares

ALPHA = 0.15


def by_hand(model, data, sparsity):
    """The sparsities from whole forward passes and the paper's equations, in double precision."""
    matrices = targets.prunable(model)
    squares = direct_squares(model, data, {t.name for t in matrices})
    unimportance, sizes = [], []
    for block in targets.blocks(model):
        inside = [t for t in matrices if any(m is t.module for m in block.modules())]
        scores = [
            np.abs(t.weight.double().numpy()) * squares[t.name].sqrt().numpy() for t in inside
        ]
        scores = np.sort(np.concatenate([s.ravel() for s in scores]))
        unimportance.append(scores[(len(scores) - 1) // 2])
        sizes.append(len(scores))
    relative = 1 - np.array(unimportance) / sum(unimportance)
    spread = 2 * ALPHA * (relative - relative.min()) / (relative.max() - relative.min())
    return sparsity - (spread - np.average(spread, weights=sizes))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_sparsities_are_those_of_the_equations(kind):
    model, data = build(kind, 4), list(batches())
    with torch.no_grad():
        for factor, block in zip((1.0, 1.3, 0.8, 1.1), targets.blocks(model), strict=True):
            for parameter in block.parameters():
                parameter.mul_(factor)
    expected = by_hand(model, data, 0.7)
    method = DLP()
    method.attach(model, context(model, data, 0.7))
    assert method.levels == pytest.approx(list(expected), abs=1e-5)
    assert len(set(method.levels)) == 4


def test_the_median_is_over_all_matrices_of_a_block_and_the_lower_of_two():
    scores = [torch.tensor([[9.0, 1.0], [7.0, 8.0]]), torch.tensor([[2.0, 3.0]])]
    assert median(scores) == 3.0  # of 1 2 3 7 8 9
    assert median(scores[:1]) == 7.0


def test_smaller_scores_make_a_block_denser():
    model, data = build("llama", 2), list(batches())
    with torch.no_grad():
        for target in targets.prunable(model)[7:]:
            target.stored.mul_(0.5)
    method = DLP()
    method.attach(model, context(model, data, 0.7))
    assert method.levels == pytest.approx([0.85, 0.55])
