"""Distillation against its equation."""

import math
from types import SimpleNamespace

import pytest
import torch

from methods.shared.distill import distilled, kd_loss


def by_hand(student, teacher, rows, temperature):
    """The definition, number by number."""
    total = 0.0
    for s, t in zip(student[rows].tolist(), teacher[rows].tolist(), strict=True):
        p = [math.exp(x / temperature) for x in t]
        q = [math.exp(x / temperature) for x in s]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student[rows])


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kd_is_the_mean_over_rows_of_its_definition(temperature):
    s, t = logits(4, 7, seed=1), logits(4, 7, seed=2)
    expected = by_hand(s, t, slice(None), temperature)
    assert kd_loss(s, t, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_kd_over_tokens_counts_the_picked_ones_only():
    s, t = logits(3, 5, 7, seed=1), logits(3, 5, 7, seed=2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    expected = by_hand(s, t, mask, 2.0)
    assert kd_loss(s, t, mask).item() == pytest.approx(expected, rel=1e-5)
    # A longer batch of the same rows has the same loss: not a mean over the batch dimension.
    assert torch.allclose(kd_loss(s, t), kd_loss(s.reshape(-1, 7), t.reshape(-1, 7)))


def test_kd_of_equal_logits_is_zero_and_the_teacher_gets_no_gradient():
    s, t = logits(4, 7).requires_grad_(), logits(4, 7).requires_grad_()
    loss = kd_loss(s, t)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    kd_loss(s, t + logits(4, 7, seed=3)).backward()
    assert t.grad is None
    assert bool((s.grad != 0).any())


def test_kd_with_nothing_picked_is_zero_and_one_output_is_a_squared_difference():
    s, t = logits(2, 3, 7, seed=1), logits(2, 3, 7, seed=2)
    assert kd_loss(s, t, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0
    s, t = logits(4, 1, seed=1), logits(4, 1, seed=2)
    assert kd_loss(s, t).item() == pytest.approx(((s - t) ** 2).mean().item())


def test_a_language_model_is_taught_where_the_next_token_is_scored():
    s, t = logits(2, 4, 11, seed=1), logits(2, 4, 11, seed=2)
    labels = torch.tensor([[5, 6, 7, -100], [-100, 4, -100, 9]])
    rows = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    found = distilled(lambda **_: SimpleNamespace(logits=t), {"labels": labels}, s)
    assert found.item() == pytest.approx(by_hand(s, t, rows, 2.0), rel=1e-5)
