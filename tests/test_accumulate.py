"""A batch in pieces: the same gradient, and what becomes of a cell that runs out of memory."""

import pytest
import torch

from bench.engine import isolate
from bench.engine.messages import failed
from bench.planning import registry
from bench.planning.job import Job
from bench.training.losses import micro_batches, smoothed_loss
from tests import helpers
from tests.samples import record


def rows(task, model, n):
    loaded, tok = helpers.loaded(model, task, 32)
    data = task.train(tok)
    batch = task.collator(tok)([data[i] for i in range(n)])
    return loaded, {k: v for k, v in batch.items() if k != "length"}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("tiny/reviews", "tiny-bert"),
        ("tiny/wikitext", "tiny-gpt2"),
        ("tiny/nlg", "tiny-gpt2"),  # labels on a part of each row only
    ],
)
@pytest.mark.parametrize("pieces", [2, 3, 50])
def test_the_pieces_gradients_add_up_to_the_batchs(task, model, pieces):
    loaded, batch = rows(registry.task(task), model, 7)

    def gradient(parts):
        loaded.zero_grad()
        for part, share in parts:
            (loaded(**part).loss * share).backward()
        return torch.cat([p.grad.flatten() for p in loaded.parameters() if p.grad is not None])

    whole, cut = gradient([(batch, 1.0)]), gradient(micro_batches(batch, pieces))
    assert torch.allclose(whole, cut, atol=1e-6, rtol=1e-4)
    assert sum(share for _, share in micro_batches(batch, pieces)) == pytest.approx(1.0)


def test_smoothing_counts_the_same_tokens():
    loaded, batch = rows(registry.task("tiny/nlg"), "tiny-gpt2", 6)

    def loss(part):
        logits = loaded(**{k: v for k, v in part.items() if k != "labels"}).logits
        return float(smoothed_loss(logits, part["labels"], 0.1).detach())

    cut = sum(share * loss(part) for part, share in micro_batches(batch, 4))
    assert cut == pytest.approx(loss(batch), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ast", {"kd": 0.67, "model": "tiny-gpt2", "task": "tiny/wikitext"}),
        ("movement", {"mode": "soft", "distill": 0.5}),
        ("movement", {"mode": "soft", "target": "lagrangian"}),
        ("l0", {}),
    ],
)
def test_teachers_and_penalties_too(name, more):
    cell = helpers.cell(name, **more)
    task = registry.task(cell.task)
    teacher = helpers.loaded(cell.model, task, 32)[0]
    model, method, _ = helpers.attached(cell, teacher=lambda: teacher)
    model.eval()
    method.step(model, 0.5)
    _, batch = rows(task, cell.model, 6)

    def loss(part):
        return float(method.loss(model, part, model(**part)).detach())

    cut = sum(share * loss(part) for part, share in micro_batches(batch, 2))
    assert cut == pytest.approx(loss(batch), rel=1e-5)


def test_a_piece_without_anything_to_predict_is_left_out():
    labels = torch.tensor([[-100, 5, 6], [-100, -100, -100], [7, -100, 8], [-100, -100, -100]])
    parts = list(micro_batches({"input_ids": labels, "labels": labels}, 4))
    assert [share for _, share in parts] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("phase", "outcomes", "tries", "message"),
    [
        ("train", ["oom", None], [1, 2], None),
        ("train", ["oom", "oom"], [1, 2], "with batches in two pieces"),
        ("train", ["nan"], [1], "nan here"),
        ("evaluate", ["oom"], [1], "oom here"),  # smaller pieces of what?
    ],
)
def test_one_more_try_after_an_oom_in_training(
    monkeypatch, tmp_path, phase, outcomes, tries, message
):
    job = Job.resolve(helpers.cell("dense"))
    tried = []

    def attempt(job, settings, timeout_s, log, on_progress, env):
        assert 0 < timeout_s <= 60
        tried.append(settings.accumulate)
        on_progress(phase, 0, 6)
        kind = outcomes[len(tried) - 1]
        return failed(job, kind, f"{kind} here") if kind else record()

    monkeypatch.setattr(isolate, "_try", attempt)
    found = isolate.run_isolated(job, 60, tmp_path / "log", lambda *_: None)
    assert tried == tries
    assert (found.error is None) == (message is None)
    if message:
        assert message in found.error.message
