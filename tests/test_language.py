"""Perplexity tasks: the protocol, the splits, and what is refused."""

import dataclasses
import itertools
import math
from functools import partial

import pytest
import torch

from bench.api import BenchError
from bench.cli import main
from bench.engine.prepare import prepare
from bench.planning import plan, registry
from bench.planning.job import Job
from bench.planning.suites import load_suite
from bench.sources import hub, token_windows
from bench.sources.tiny_models import tiny_tokenizer
from bench.training import train
from bench.weights.precision import autocast
from methods.dense import Dense
from tasks import wikitext
from tests import helpers
from tests.helpers import fit_cell, run_cell

DECODERS = ("tiny-gpt2", "tiny-llama")
CPU = torch.device("cpu")
quiet = lambda *_: None  # noqa: E731


@pytest.fixture
def task():
    return registry.task("tiny/wikitext")


def loaded(model, task, length=32):
    return helpers.loaded(model, task, length)


def loop(model, ids, length):
    """Perplexity as the definition has it: token by token, in float64."""
    total, n = 0.0, 0
    for start in range(0, len(ids) - length + 1, length):
        window = torch.tensor(ids[start : start + length])
        with torch.no_grad():
            logits = model(input_ids=window[None]).logits[0].double()
        for position in range(1, length):
            total -= float(logits[position - 1].log_softmax(-1)[window[position]])
            n += 1
    return math.exp(total / n), n


@pytest.mark.parametrize("length", [32, 100])
@pytest.mark.parametrize("model", DECODERS)
def test_perplexity_equals_a_loop_over_tokens(model, length, task):
    net, tok = loaded(model, task, length)
    found = task.evaluate(net, tok, CPU)
    ids = tok("\n\n".join(task.data.test))["input_ids"]
    assert len(ids) % length != 0  # so that a ragged end is dropped
    expected, n = loop(net, ids, length)
    assert found.n == len(found.items) == len(ids) // length == n // (length - 1)
    assert found.values["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert math.exp(sum(found.items) / found.n) == pytest.approx(expected, rel=1e-5)
    assert found.values["nll"] == pytest.approx(math.log(expected), rel=1e-5)


def test_batches_are_of_windows_and_do_not_change_the_score(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    many = task.evaluate(net, tok, CPU)
    monkeypatch.setattr("tasks.shared.language.EVAL_TOKENS", 1)
    assert task.evaluate(net, tok, CPU).items == pytest.approx(many.items, rel=1e-5)


def test_a_model_that_says_nothing_scores_the_vocabulary(task):
    net, tok = loaded("tiny-llama", task)
    torch.nn.init.zeros_(net.lm_head.weight)
    found = task.evaluate(net, tok, CPU)
    assert found.values["perplexity"] == pytest.approx(261, rel=1e-5)
    ids, text = tok("\n\n".join(task.data.test))["input_ids"], "\n\n".join(task.data.test)
    assert found.values["bits_per_byte"] == pytest.approx(math.log2(261) * len(ids) / len(text))


def test_a_loss_that_is_not_finite_is_an_error(task):
    net, tok = loaded("tiny-llama", task)
    torch.nn.init.constant_(net.lm_head.weight, float("nan"))
    with pytest.raises(BenchError, match="not finite") as error:
        task.evaluate(net, tok, CPU)
    assert error.value.kind == "nan"


@pytest.mark.parametrize("model", DECODERS)
def test_the_training_loss_is_the_evaluated_one(model, task):
    net, tok = loaded(model, task)
    rows = task.train(tok)
    assert set(rows["length"]) == {32}
    assert len(rows) == len(task.ids("train", tok)) // 32
    batch = task.collator(tok)([rows[i] for i in range(5)])
    assert batch["input_ids"].shape == (5, 32)
    assert torch.equal(batch["input_ids"], batch["labels"])
    with torch.no_grad():
        loss = float(net(**batch).loss)
    expected, _ = loop(net, batch["input_ids"].flatten().tolist(), 32)
    assert math.exp(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", DECODERS)
def test_the_twin_is_learnable(model, task):
    net, tok = loaded(model, task)
    before = task.evaluate(net, tok, CPU).values["perplexity"]
    train.fit(Dense(Dense.Params(lr=2e-3)), net, tok, task, task.budgets["default"], 1, quiet)
    after = task.evaluate(net, tok, CPU).values["perplexity"]
    # No model knows more than the chain does: its entropy is that of (8, 1, 1) / 10 at most.
    assert math.exp(0.639) * 0.95 < after < 20 < before


def test_twins_splits_are_apart(task):
    data = task.data
    sets = [set(part) for part in (data.train, data.select, data.test)]
    assert [len(part) for part in (data.train, data.select, data.test)] == [1000, 200, 300]
    assert not any(a & b for a, b in itertools.combinations(sets, 2))


def test_calibration_windows_come_from_train_and_are_drawn_by_seed(task):
    tok = tiny_tokenizer("gpt2")
    first, again, other = (task.calibration(tok, 20, 16, seed) for seed in (1, 1, 2))
    assert [len(batch["input_ids"]) for batch in first] == [8, 8, 4]
    ids = torch.cat([batch["input_ids"] for batch in first])
    assert ids.shape == (20, 16)
    assert all(bool((batch["attention_mask"] == 1).all()) for batch in first)
    everywhere = windows_of(task.ids("train", tok), 16)
    assert all(tuple(row) in everywhere for row in ids.tolist())
    assert torch.equal(ids, torch.cat([batch["input_ids"] for batch in again]))
    assert not torch.equal(ids, torch.cat([batch["input_ids"] for batch in other]))


def windows_of(ids, length):
    ids = ids.tolist()
    return {tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)}


def test_a_limit_scores_windows_spread_over_the_text(task):
    net, tok = loaded("tiny-llama", task)
    every = task.evaluate(net, tok, CPU)
    half = dataclasses.replace(task.budgets["default"], items=every.n // 2)
    found = task.evaluate(net, tok, CPU, budget=half)
    assert found.notes == (f"scored on {every.n // 2} of {every.n} windows",)
    assert every.n % 2 == 0  # so that every second window is meant
    assert found.items == pytest.approx(every.items[::2])
    assert math.log(found.values["perplexity"]) == pytest.approx(
        sum(found.items) / len(found.items)
    )
    whole = task.evaluate(net, tok, CPU, budget=dataclasses.replace(half, items=10**5))
    assert (whole.items, whole.notes) == (every.items, ())


def test_spread_windows_are_as_far_apart_as_can_be():
    windows = torch.arange(10)[:, None]
    assert token_windows.spread(windows, 4).flatten().tolist() == [0, 2, 5, 7]
    assert token_windows.spread(windows, 1).tolist() == [[0]]
    for n in (None, 10, 11):
        assert token_windows.spread(windows, n) is windows


def test_windows_reach_both_ends():
    ids = torch.arange(10)
    drawn = token_windows.draw(ids, 200, 8, 0, "x")
    assert set(drawn[:, 0].tolist()) == {0, 1, 2}
    assert torch.equal(token_windows.cut(ids, 4, "x"), torch.arange(8).view(2, 4))
    assert torch.equal(token_windows.draw(ids, 1, 10, 0, "x")[0], ids)
    for cut in (
        lambda: token_windows.cut(ids, 11, "x"),
        lambda: token_windows.draw(ids, 1, 11, 0, "x"),
    ):
        with pytest.raises(BenchError, match="x has 10 tokens, fewer than one window of 11"):
            cut()


def test_batches_pad_on_the_right():
    (batch,) = token_windows.batches([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


cell = partial(helpers.cell, model="tiny-gpt2", task="tiny/wikitext")


@pytest.mark.parametrize("model", DECODERS)
def test_the_pretrained_model_is_the_dense_one(model, task):
    net, tok = loaded(model, task)
    dense = run_cell(cell("dense", model=model), quiet)
    with autocast(str(dense.env["eval_dtype"]), CPU):
        alone = task.evaluate(net, tok, CPU)
    assert dense.scores.value == pytest.approx(alone.values["perplexity"])
    assert dense.params.trainable.body == dense.cost.train_s == 0
    assert dense.scores.higher_is_better is False
    assert not Job.resolve(cell("magnitude", model=model)).needs_dense
    pruned = run_cell(cell("magnitude", model=model), quiet)
    assert pruned.model.weights_sha256 == dense.model.weights_sha256
    assert pruned.sparsity.overall == pytest.approx(0.5, abs=1e-4)
    assert pruned.cost.dense_s == 0
    retrained = run_cell(cell("pst", model=model, budget__steps=20), quiet)
    assert retrained.params.trainable.body > 0
    assert retrained.scores.value < pruned.scores.value


def test_an_encoder_is_refused(task):
    line = r"tiny/wikitext needs a causal language model; tiny-bert is an encoder \(bert\)"
    with pytest.raises(BenchError, match=line):
        fit_cell(cell("magnitude", model="tiny-bert"), quiet)


def test_windows_beyond_the_positions_are_refused():
    with pytest.raises(BenchError, match="length 256: tiny-gpt2 has positions for 128 tokens"):
        fit_cell(cell("dense", budget__length=256), quiet)
    fits = Job.resolve(cell("dense", budget__length=128))
    prepare([fits])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--model", "tiny-bert"), "tiny-bert is an encoder"),
        (("--model", "tiny-gpt2", "--set", "budget.length=129"), "positions for 128 tokens"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(capsys, tmp_path, more, line):
    folders = ("--results", str(tmp_path / "r"), "--reports", str(tmp_path / "p"))
    code = main.main(("run", "--task", "tiny/wikitext", "--method", "magnitude", *more, *folders))
    out, err = capsys.readouterr()
    announced, refused = err.splitlines()
    assert (code, out) == (2, "")
    assert "to run" in announced
    assert line in refused
    assert not (tmp_path / "r").exists()


def test_every_row_of_the_suite_is_scored_on_the_same_windows():
    cells = [job.cell for job in plan.expand(load_suite("perplexity"))]
    assert {(c.task, c.model, c.budget) for c in cells} == {
        ("wikitext-c4", "smollm2-135m-q4", "default")
    }
    assert {dict(c.overrides.budget)["items"] for c in cells} == {64}
    bases = {dict(c.overrides.method).get("base") for c in cells if c.method == "dsnot"}
    assert bases == {None, "magnitude", "sparsegpt"}
    blocks = {c.method for c in cells if str(c.pattern) == "blocks"}
    assert blocks == {"shortgpt", "sleb"}


def fake(monkeypatch, train):
    """WikiText with made-up rows: an article every 50 rows."""

    class Rows(dict):
        def __len__(self):
            return len(self["text"])

    def load_split(repo, config, split, revision):
        assert (repo, config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
        assert split in ("train", "test")
        n = train if split == "train" else 4358
        texts = [f" = {split} {i} = \n" if i % 50 == 0 else f" {split} w{i} \n" for i in range(n)]
        texts[1] = " = = Section = = \n"
        return Rows(text=texts), "mirror"

    monkeypatch.setattr(hub, "load_split", load_split)
    return wikitext.Wikitext("wikitext")


def test_wikitext_selects_on_train_articles_and_reports_test(monkeypatch):
    task = fake(monkeypatch, 36718)
    data = task.data
    assert (
        data.train + data.select
        == hub.load_split("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "")[0]["text"]
    )
    assert data.select[0] == " = train 33050 = \n"  # the first article from row 33046 on
    assert len(data.test) == 4358
    assert task.source().subset == ""
    assert task.text("test").startswith(" = test 0 = \n\n\n = = Section = = \n\n\n test w2")


def test_wikitext_says_so_when_train_is_a_subset(monkeypatch):
    assert fake(monkeypatch, 3279).source().subset == "train 3279 of 36718 rows"


def test_an_article_is_not_a_section():
    rows = [" = A = \n", " = = B = = \n", "", " = C = \n", " text = \n", " = = = D = = = \n"]
    assert wikitext.carve_articles(rows, 5 / 6) == (rows[:3], rows[3:])
    assert wikitext.carve_articles(rows, 0.1) == (rows, [])


def test_wikitext_without_a_source_names_the_repository():
    with pytest.raises(BenchError, match="Salesforce/wikitext") as error:
        wikitext.Wikitext("wikitext").prepare()
    assert error.value.kind == "offline"
