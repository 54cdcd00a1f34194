"""Items of metrics that are no mean of items, against leaving out each item in turn."""

import random

import numpy as np
import pytest
import torch

from bench.core.record import parse
from bench.reporting import paired
from tasks.metrics import jackknife
from tasks.metrics.classification import classification_items, classification_scores
from tasks.metrics.ngram import Nist, RougeL
from tasks.metrics.text import Bleu, words_apart
from tasks.tiny import TinyReviews
from tasks.zero_shot import mean_items
from tests import helpers
from tests.benchmarks import simulate_metrics
from tests.oracles import jackknife as oracle
from tests.oracles import text
from tests.samples import record
from tests.test_text_metrics import corpus


def classes(n, seed, right=0.8, positive=0.3):
    draw = random.Random(seed)
    gold = [int(draw.random() < positive) for _ in range(n)]
    return [g if draw.random() < right else 1 - g for g in gold], gold


def numbers(n, seed):
    draw = random.Random(seed)
    gold = [draw.uniform(0, 5) for _ in range(n)]
    return [0.6 * g + draw.gauss(0, 1) for g in gold], gold


@pytest.mark.parametrize("n", [1, 2, 7, 60])
@pytest.mark.parametrize(
    ("metric", "make", "by_definition"),
    [
        ("f1", classes, oracle.f1),
        ("matthews", classes, oracle.matthews),
        ("pearson", numbers, oracle.pearson),
    ],
)
def test_items_equal_leaving_out_each(metric, make, by_definition, n):
    predicted, gold = make(n, 0)
    found = classification_items(metric, predicted, gold)
    score = classification_scores(metric, predicted, gold)[metric]
    assert np.mean(found) == pytest.approx(score, abs=1e-12)
    if n > 1:
        pairs = list(zip(predicted, gold, strict=True))
        assert found == pytest.approx(oracle.values(by_definition, pairs), abs=1e-9)


@pytest.mark.parametrize(("metric", "labels"), [("f1", 2), ("matthews", 2), ("pearson", 1)])
def test_a_task_returns_them(metric, labels, monkeypatch):
    monkeypatch.setattr(TinyReviews, "metric", metric)
    monkeypatch.setattr(TinyReviews, "labels", labels)
    task = TinyReviews("tiny/reviews")
    loaded = helpers.load("tiny-bert", task, 1)
    loaded.tok.model_max_length = 20
    found = task.evaluate(loaded.model.eval(), loaded.tok, torch.device("cpu"))
    assert found.n == len(found.items) == 300
    assert len(set(found.items)) <= 4 or labels == 1
    assert np.mean(found.items) == pytest.approx(found.values[metric], abs=1e-9)
    assert ("majority" in found.values) == (labels == 2)


def test_of_accuracy_they_are_right_or_wrong():
    predicted, gold = classes(50, 1)
    found = classification_items("accuracy", predicted, gold)
    right = [int(p == g) for p, g in zip(predicted, gold, strict=True)]
    assert [int(item) for item in found] == right
    # The jackknife values of a mean are its items.
    without = [(sum(right) - one) / 49 for one in right]
    assert jackknife.values(sum(right) / 50, without) == pytest.approx(right)


def test_a_constant_prediction_has_items_of_nothing():
    gold = [float(i) for i in range(20)]
    assert classification_items("pearson", [1.0] * 20, gold) == [0.0] * 20
    # Constant without the first: the items are finite, and their mean is the score.
    found = classification_items("pearson", [3.0] + [1.0] * 19, gold)
    pairs = list(zip([3.0] + [1.0] * 19, gold, strict=True))
    assert found == pytest.approx(oracle.values(oracle.pearson, pairs))
    assert classification_items("matthews", [1] * 20, [1, 0] * 10) == [0.0] * 20
    assert classification_items("f1", [0] * 20, [1, 0] * 10) == [0.0] * 20


@pytest.mark.parametrize("seed", range(3))
def test_bleu_leaves_out_each_text(seed):
    made, golds = corpus(15, seed)
    pairs = [(m.split(), [r.split() for r in rs]) for m, rs in zip(made, golds, strict=True)]
    expected = oracle.values(lambda kept: text.bleu(*zip(*kept, strict=True)), pairs)
    assert Bleu().items(made, golds) == pytest.approx(expected)
    assert np.mean(Bleu().items(made, golds)) == pytest.approx(Bleu().corpus(made, golds))


def test_bleu_of_texts_without_matches_or_of_one_text():
    made, golds = ["x y", "", "z"], [["a b"], ["c"], ["d"]]
    assert Bleu().items(made, golds) == [0.0] * 3
    assert Bleu().items(["the pub is near"], [["the pub is far"]]) == [
        Bleu().corpus(["the pub is near"], [["the pub is far"]])
    ]


def test_items_are_of_the_texts_as_the_metric_tokenizes_them():
    made, golds = corpus(8, 3)
    made = [m.replace(" ", "-") for m in made]
    apart = Bleu(words_apart)
    assert np.mean(apart.items(made, golds)) == pytest.approx(apart.corpus(made, golds))
    assert apart.items(made, golds) != Bleu().items(made, golds)


def test_a_text_metric_has_items_by_default():
    made, golds = corpus(10, 5)
    assert RougeL().items(made, golds) == pytest.approx(RougeL().segments(made, golds))
    pairs = list(zip(made, golds, strict=True))
    expected = oracle.values(lambda kept: Nist().corpus(*zip(*kept, strict=True)), pairs)
    assert Nist().items(made, golds) == pytest.approx(expected)


def test_a_mean_over_sets_leaves_out_each_item_of_its_set():
    draw = random.Random(0)
    sizes = {"a": 40, "other": 30, "b": 7, "one": 1}
    right = {s: "".join(draw.choice("0111") for _ in range(n)) for s, n in sizes.items()}
    items = [(name, int(item)) for name, row in right.items() for item in row]

    def mean(kept, over):
        shares = [[item for name, item in kept if name == s] for s in over]
        return sum(sum(share) / len(share) for share in shares) / len(over)

    found = mean_items(right, ["a", "b"])
    assert found == pytest.approx(oracle.values(lambda kept: mean(kept, ["a", "b"]), items))
    assert np.mean(mean_items(right, ["a", "one"])) == pytest.approx(mean(items, ["a", "one"]))
    # The squared standard error of a mean of independent means.
    expected = sum(np.var([int(i) for i in right[s]], ddof=1) / len(right[s]) for s in "ab") / 4
    assert np.var(found, ddof=1) / len(found) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("right", [0.9, 0.5001])
@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson"])
def test_a_record_shows_that_the_score_is_its_items_mean(metric, right):
    n = 300 if metric == "pearson" else 997
    predicted, gold = numbers(n, 2) if metric == "pearson" else classes(n, 2, right)
    value = classification_scores(metric, predicted, gold)[metric]
    made = record(value, items=classification_items(metric, predicted, gold))
    scores = made.scores.model_copy(update={"metric": metric, "n": n})
    read = parse(made.model_copy(update={"scores": scores}).to_json(), "here").scores
    assert paired.basis_of(read) == "mean"
    other = read.model_copy(update={"value": read.value + 1e-3})
    assert paired.basis_of(other) == "seeds"


def test_two_rows_are_compared_over_their_items():
    rows = []
    for method, right in (("a", 0.9), ("b", 0.7)):
        row = []
        for seed in (1, 2, 3):
            predicted, gold = classes(400, seed, right)
            value = classification_scores("matthews", predicted, gold)["matthews"]
            items = classification_items("matthews", predicted, gold)
            made = record(value, items=items, method=method, seed=seed)
            scores = made.scores.model_copy(update={"metric": "matthews", "n": 400})
            row.append(made.model_copy(update={"scores": scores}))
        rows.append(row)
    test = paired.compare(*rows)
    assert (test.items, test.seeds, test.ratio) == (400, 3, False)
    means = [np.mean([r.scores.value for r in row]) for row in rows]
    assert test.effect == pytest.approx(means[0] - means[1])
    assert test.p < 0.05
    column = paired.all_pairs(rows)
    assert (column.places, column.basis) == ([(1, 1), (2, 2)], "mean")


@pytest.mark.parametrize("metric", simulate_metrics.METRICS)
def test_equal_methods_are_rarely_told_apart(metric):
    noise = simulate_metrics.NOISE["items and seeds"]
    found = simulate_metrics.rates(metric, 200, 3, 300, noise)
    # 5 % and three standard errors of 200 draws.
    assert found["items"] <= 0.10


@pytest.mark.parametrize(
    ("metric", "by_definition"),
    [("f1", oracle.f1), ("matthews", oracle.matthews), ("spearman", oracle.spearman)],
)
def test_the_simulations_values_are_jackknife_values(metric, by_definition):
    rng = np.random.default_rng(0)
    noise = simulate_metrics.NOISE["items and seeds"]
    predicted, gold = simulate_metrics.draw(metric, rng, 3, 40, noise)
    scores, values = simulate_metrics.METRICS[metric](predicted, gold)
    for m, s in ((0, 0), (1, 2)):
        pairs = list(zip(predicted[m, s].tolist(), gold.tolist(), strict=True))
        assert scores[m, s] == pytest.approx(by_definition(pairs))
        assert values[m, s] == pytest.approx(oracle.values(by_definition, pairs))
