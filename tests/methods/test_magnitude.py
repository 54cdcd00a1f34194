"""Magnitude pruning (methods/README.md, magnitude), and the promises of one-shot methods."""

import pytest
import torch

from bench.api import BenchError
from bench.core.pattern import UNSTRUCTURED
from bench.weights import targets
from methods.shared.masks import keep_masks
from tests import helpers


def masks(scale, pool):
    g = torch.Generator().manual_seed(0)
    weights = {f"l{i}": torch.randn(8, 12, generator=g) * scale**i for i in range(3)}
    scores = {n: w.abs() for n, w in weights.items()}
    return weights, keep_masks(scores, UNSTRUCTURED, 0.5, pool)


def test_layer_pool_ignores_the_scale_of_a_matrix_but_the_global_pool_does_not():
    _, plain = masks(1.0, "layer")
    _, scaled = masks(7.0, "layer")
    assert all(torch.equal(plain[n], scaled[n]) for n in plain)
    _, plain = masks(1.0, "global")
    _, scaled = masks(7.0, "global")
    assert not all(torch.equal(plain[n], scaled[n]) for n in plain)


@pytest.mark.parametrize("pool", ["layer", "row", "global"])
def test_every_kept_weight_is_at_least_every_pruned_one_of_its_pool(pool):
    weights, keep = masks(2.0, pool)
    if pool == "global":
        pools = [
            (
                torch.cat([w.flatten() for w in weights.values()]),
                torch.cat([k.flatten() for k in keep.values()]),
            )
        ]
    elif pool == "layer":
        pools = [(weights[n], keep[n]) for n in weights]
    else:
        pools = [pair for n in weights for pair in zip(weights[n], keep[n], strict=True)]
    for weight, kept in pools:
        assert weight[kept].abs().min() >= weight[~kept].abs().max()
        assert int((~kept).sum()) == weight.numel() // 2


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_exact_zeros_in_every_matrix(model):
    pruned, _, ctx = helpers.attached(helpers.cell("magnitude", model, 0.7))
    for target in ctx.targets:
        n = target.weight.numel()
        assert helpers.zeros(pruned)[target.name] == int(n * 0.7 + 1e-6)


def test_conv1d_groups_run_down_the_stored_columns():
    model, _, _ = helpers.attached(helpers.cell("magnitude", "tiny-gpt2", pattern="2:4"))
    stored = model.transformer.h[0].attn.c_attn.weight  # (in, out)
    groups = stored.detach().t().reshape(-1, 4)
    assert bool((groups.count_nonzero(dim=1) == 2).all())


def test_fused_qkv_is_one_matrix_of_three_parts():
    model, _, _ = helpers.attached(helpers.cell("magnitude", "tiny-gpt2"))
    parts = {t.name.rsplit(".", 1)[1]: t.parts for t in targets.prunable(model)}
    assert parts == {"c_attn": 3, "c_proj": 1, "c_fc": 1}


def test_width_not_divisible_is_refused_by_name():
    with pytest.raises(BenchError, match=r"pattern 2:5: .* has 64 inputs, not a multiple of 5"):
        helpers.attached(helpers.cell("magnitude", pattern="2:5"))
