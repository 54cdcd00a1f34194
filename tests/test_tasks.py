import re
import textwrap
from pathlib import Path

import pytest
import torch

from bench.api import BenchError
from bench.planning import registry
from bench.sources import hub
from bench.sources.tiny_models import tiny_tokenizer
from tasks import glue, tiny
from tasks.metrics.classification import classification_scores
from tasks.reviews import read_labels
from tasks.shared import zero_shot_sets
from tasks.shared.base import carve, position
from tasks.shared.classification import Rows
from tests import helpers


def test_reviews_lines_become_labels():
    lines = [
        "1\t2.5\tA fine film.\r\n",
        "2\t-0.3\tToo  long.\n",
        "3\t0.24\tIt exists.\n",
        "4\t-3\tA fine film.\n",
        "broken line\n",
        "5\t-0.25\tA tab\tin it.\n",
    ]
    assert read_labels(lines) == {"A fine film.": 1, "Too long.": 0, "A tab in it.": 0}


def test_position_is_fixed_and_uniform():
    assert position("A fine film.") == position("A fine film.")
    spots = [position(f"sentence {i}") for i in range(2000)]
    assert min(spots) >= 0
    assert max(spots) < 1
    assert sum(s < 0.15 for s in spots) == pytest.approx(300, abs=60)


def test_carve_keeps_duplicates_together_and_loses_nothing():
    texts = [f"t{i % 400}" for i in range(800)]
    train, select = carve(Rows(texts, None, list(range(800))), 0.2)
    assert not set(train.first) & set(select.first)
    assert sorted(train.labels + select.labels) == list(range(800))
    assert 0 < len(select) < 400


def test_tiny_splits_are_disjoint_and_balanced():
    data = tiny.TinyReviews("tiny/reviews").data
    texts = [set(rows.first) for rows in (data.train, data.select, data.test)]
    assert [len(t) for t in texts] == [1000, 200, 300]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert 0.4 < sum(data.test.labels) / 300 < 0.6


def test_source_fingerprint_follows_the_rows():
    task = tiny.TinyReviews("tiny/reviews")
    first = task.source().fingerprint
    task.data.test.labels[0] = 1 - task.data.test.labels[0]
    assert task.source().fingerprint != first


def test_metrics_by_hand():
    # tp 2, fp 1, fn 1, tn 1: accuracy 3/5, F1 = 2·2/(2·2+1+1), MCC = (2·1−1·1)/√(3·3·2·2).
    gold, predicted = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert classification_scores("accuracy", predicted, gold) == pytest.approx(
        {"accuracy": 0.6, "f1": 2 / 3}
    )
    assert classification_scores("matthews", predicted, gold)["matthews"] == pytest.approx(1 / 6)
    found = classification_scores("pearson", [1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(0.98198, abs=1e-5)
    assert classification_scores("pearson", [1.0, 1.0], [1.0, 2.0]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
    assert classification_scores("accuracy", [0, 2, 1], [0, 2, 2]) == pytest.approx(
        {"accuracy": 2 / 3}
    )


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_evaluate_equals_a_loop_over_single_rows(model):
    task = registry.task("tiny/reviews")
    loaded = helpers.load(model, task, 1)
    loaded.tok.model_max_length = 20
    net = loaded.model.eval()
    found = task.evaluate(net, loaded.tok, torch.device("cpu"))
    rows, right = task.data.test, []
    with torch.no_grad():
        for text, label in zip(rows.first, rows.labels, strict=True):
            ids = loaded.tok(text, return_tensors="pt", truncation=True)
            right.append(int(net(**ids).logits.argmax()) == label)
    assert found.items == "".join("01"[r] for r in right)
    assert found.values["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found.n == 300


def test_calibration_is_drawn_by_seed_and_cut():
    task = registry.task("tiny/reviews")
    tok = tiny_tokenizer()
    first, again, other = (task.calibration(tok, 40, 8, seed) for seed in (1, 1, 2))
    assert sum(len(b["input_ids"]) for b in first) == 40
    assert max(b["input_ids"].shape[1] for b in first) == 8
    assert "labels" not in first[0]
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


def test_unpadded_and_padded_batches_train_on_the_same_length_column():
    task = registry.task("tiny/reviews")
    tok = tiny_tokenizer()
    tok.model_max_length = 10
    rows = task.train(tok)
    assert rows["length"][:50] == [len(ids) for ids in rows["input_ids"][:50]]
    assert max(rows["length"]) == 10


def test_glue_has_its_nine_tasks_and_metrics():
    found = {name: registry.task(f"glue/{name}") for name in glue.SPECS}
    assert len(found) == 9
    assert {n: t.metric for n, t in found.items() if t.metric != "accuracy"} == {
        "cola": "matthews",
        "stsb": "pearson",
        "mrpc": "f1",
        "qqp": "f1",
    }
    assert {n: t.labels for n, t in found.items() if t.labels != 2} == {"stsb": 1, "mnli": 3}


def _fake_glue(monkeypatch, rows):
    def load_split(repo, config, split, revision):
        texts = [f"{split} {i}" for i in range(rows[split])]
        columns = {
            "sentence1": texts,
            "sentence2": texts,
            "label": [i % 2 for i in range(len(texts))],
        }
        return _Split(columns), "mirror"

    class _Split(dict):
        def __len__(self):
            return len(self["label"])

    monkeypatch.setattr(hub, "load_split", load_split)
    return glue.Glue("glue/rte")


def test_glue_selects_on_a_slice_of_train_and_reports_validation(monkeypatch):
    task = _fake_glue(monkeypatch, {"train": 2490, "validation": 277})
    data = task.data
    assert len(data.train) + len(data.select) == 2490
    assert 150 < len(data.select) < 350
    assert all(text.startswith("validation") for text in data.test.first)
    assert task.source().subset == ""


def test_glue_says_so_when_the_source_is_a_subset(monkeypatch):
    task = _fake_glue(monkeypatch, {"train": 200, "validation": 277})
    assert task.source().subset == "train 200 of 2490 rows"


def test_glue_without_a_source_names_the_repository():
    with pytest.raises(BenchError, match="nyu-mll/glue") as error:
        glue.Glue("glue/qqp").prepare()
    assert error.value.kind == "offline"


README = Path(__file__).parent.parent / "tasks" / "README.md"


def test_the_example_of_the_page_is_a_task():
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)[1]
    space = {"__name__": "readme"}
    exec(compile(textwrap.dedent(block), str(README), "exec"), space)
    task = space["Weather"]("weather")
    loaded = helpers.load("tiny-bert", registry.task(helpers.TASK))
    loaded.tok.model_max_length = 8
    assert task.evaluate(loaded.model, loaded.tok, torch.device("cpu")).n == 200
    assert len(task.train(loaded.tok)) + len(task.data.select) == 1000
    assert 0 < len(task.data.select) < 200
    assert task.source().repo == "made up"


def test_the_page_names_every_task():
    text = README.read_text(encoding="utf-8")
    for name in registry.builtin("task"):
        family, _, one = name.rpartition("/")
        shown = one if family in ("glue", "nlg", "zero-shot") else name
        assert f"`{shown}`" in text, name
        assert not family or f"`{family}/" in text, name


def test_the_registered_names_are_those_of_the_families():
    names = set(registry.builtin("task"))
    assert {n for n in names if n.startswith("glue/")} == {f"glue/{n}" for n in glue.SPECS}
    sets = {n.removeprefix("zero-shot/") for n in names if n.startswith("zero-shot/")}
    assert sets == set(zero_shot_sets.SETS)
