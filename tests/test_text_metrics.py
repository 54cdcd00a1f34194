"""Text metrics against hand-computed cases, brute force and the libraries that define them."""

import math
import random
import shutil

import pytest
from sacrebleu import corpus_bleu, corpus_chrf, corpus_ter

from bench.api import BenchError
from bench.sources import pypi_assets
from tasks.metrics import meteor, ptb_tokens
from tasks.metrics.ngram import Cider, Nist, RougeL
from tasks.metrics.text import Bleu, ChrF, Meteor, Ter, words_apart
from tests.oracles import text

EVERY = (Bleu, ChrF, Ter, Nist, RougeL, Cider)


def corpus(n, seed=0, references=(1, 4), words=9):
    """`n` short texts over few words, so that n-grams repeat; each with some references."""
    draw = random.Random(seed)
    vocabulary = ["the", "blue", "spice", "pub", "near", "river", "cheap", "food", "a", "is"]

    def one(low=4):
        return " ".join(draw.choices(vocabulary, k=draw.randrange(low, words + 1)))

    golds = [[one() for _ in range(draw.randint(*references))] for _ in range(n)]
    made = []
    for texts in golds:
        kept = draw.choice(texts).split()
        kept[draw.randrange(len(kept))] = draw.choice(vocabulary)
        made.append(" ".join(kept[: draw.randrange(2, len(kept) + 1)]))
    return made, golds


def split(made, golds):
    return [m.split() for m in made], [[r.split() for r in rs] for rs in golds]


@pytest.mark.parametrize("seed", range(4))
def test_each_equals_brute_force(seed):
    made, golds = corpus(12, seed)
    words = split(made, golds)
    assert Cider().segments(made, golds) == pytest.approx(text.cider(*words))
    assert Nist().corpus(made, golds) == pytest.approx(text.nist(*words))
    assert Bleu().corpus(made, golds) == pytest.approx(text.bleu(*words))
    expected = [text.rouge_l(h, rs) for h, rs in zip(*words, strict=True)]
    assert RougeL().segments(made, golds) == pytest.approx(expected)
    assert RougeL().corpus(made, golds) == pytest.approx(sum(expected) / 12)


def test_bleu_chrf_and_ter_equal_sacrebleu():
    made, golds = corpus(30, 7, references=(3, 3))
    made = [m.capitalize() + "." for m in made]
    streams = [list(stream) for stream in zip(*golds, strict=True)]
    assert 100 * Bleu().corpus(made, golds) == pytest.approx(
        corpus_bleu(made, streams, lowercase=True, force=True).score
    )
    assert 100 * ChrF().corpus(made, golds) == pytest.approx(
        corpus_chrf(made, streams, word_order=2).score
    )
    # One item, one reference: nothing to aggregate, so Tercom's number.
    for one, gold in zip(made, golds, strict=True):
        alone = corpus_ter([one], [[gold[0]]]).score
        assert 100 * Ter().corpus([one], [gold[:1]]) == pytest.approx(alone)


@pytest.mark.parametrize("seed", range(3))
def test_nist_equals_nltk_where_there_is_one_reference(seed):
    score = pytest.importorskip("nltk.translate.nist_score")
    made, golds = corpus(15, seed, references=(1, 1))
    hypotheses, references = split(made, golds)
    expected = score.corpus_nist(references, hypotheses, n=5)
    assert Nist().corpus(made, golds) == pytest.approx(expected)


def test_bleu_by_hand():
    # 6 words: 5 of 6 unigrams, 3 of 5 bigrams, 2 of 4 trigrams, 1 of 3 four-grams; 6 = 6 words.
    made, gold = "the pub is near the river", "the pub is near a river"
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert Bleu().corpus([made], [[gold]]) == pytest.approx(expected)
    # Cut to five words it keeps 4 of 5, 3 of 4, 2 of 3 and 1 of 2, and pays exp(1 − 6/5).
    expected = math.exp(-1 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert Bleu().corpus([made[:-6]], [[gold]]) == pytest.approx(expected)


def test_the_closest_reference_length_counts_and_of_two_the_shorter():
    made = "a b c d e f"
    near = [[made + " g h", " ".join(made.split()[:4])]]  # 8 and 4 words: 4 is taken, no penalty
    assert Bleu().corpus([made], near) == pytest.approx(1.0)


def test_nist_by_hand():
    # Two references of two words: N = 4; a occurs twice, b and c once.
    # info(a) = log2(4/2) = 1, info(b) = log2(4/1) = 2, info(a b) = log2(2/1) = 1.
    assert Nist().corpus(["a b"], [["a b", "a c"]]) == pytest.approx((1 + 2) / 2 + 1 / 1)
    # Two thirds of the length cost half of the score: 1/2 · (1 · log2(3/1)).
    assert Nist().corpus(["a x"], [["a b c"]]) == pytest.approx(0.5 * math.log2(3) / 2)


def test_rouge_by_hand():
    # The common subsequence is "a c": precision 2/3, recall 2/2.
    precision, recall, square = 2 / 3, 1.0, 1.44
    expected = (1 + square) * precision * recall / (recall + square * precision)
    assert RougeL().corpus(["a b c"], [["a c"]]) == pytest.approx(expected)
    # Precision from the long reference, recall from the short one.
    assert RougeL().corpus(["a b c"], [["a b c d e f", "a"]]) == pytest.approx(1.0)


def test_cider_by_hand():
    made, golds = ["a b c d", "x"], [["a b c d"], ["e f g h"]]
    # The same text has cosine 1 in all four orders; the other shares nothing.
    assert Cider().segments(made, golds) == pytest.approx([10.0, 0.0])
    # One more word (w occurs nowhere, so it weighs log 2 like the rest): cosines by order.
    cosines = [4 / math.sqrt(5 * 4), 3 / math.sqrt(4 * 3), 2 / math.sqrt(3 * 2), 1 / math.sqrt(2)]
    expected = 10 * sum(cosines) / 4 * math.exp(-1 / 72)
    assert Cider().segments(["a b c d w", "x"], golds)[0] == pytest.approx(expected)


def test_ter_is_the_least_over_references_each_by_its_own_length():
    # One edit of four words; three edits of ten would be more.
    assert Ter().corpus(["a b c x"], [["a b c d", "p q r s t u v w x y"]]) == pytest.approx(1 / 4)
    # A moved block is one edit.
    assert Ter().corpus(["c d a b"], [["a b c d"]]) == pytest.approx(1 / 4)
    both = Ter().segments(["a b", "a x y z"], [["a b"], ["a b"]])
    assert both == pytest.approx([0.0, 3 / 2])
    assert Ter().corpus(["a b", "a x y z"], [["a b"], ["a b"]]) == pytest.approx(3 / 4)


@pytest.mark.parametrize("metric", EVERY)
def test_an_empty_text_is_worst_and_breaks_nothing(metric):
    made, golds = corpus(5)
    worst = 1.0 if metric is Ter else 0.0
    assert metric().corpus([""], [golds[0]]) == pytest.approx(worst, abs=1e-9)
    assert metric().segments(["", *made[1:]], golds)[0] == pytest.approx(worst, abs=1e-9)
    assert math.isfinite(metric().corpus(["", *made[1:]], golds))


@pytest.mark.parametrize("metric", EVERY)
def test_the_right_text_is_best(metric):
    _, golds = corpus(6, words=8, references=(1, 3))
    right = [rs[-1] for rs in golds]
    best = {Ter: 0.0, Nist: None, Cider: None}.get(metric, 1.0)
    found = metric().corpus(right, golds)
    if best is not None:
        assert found == pytest.approx(best)
    sign = -1 if metric is Ter else 1
    assert sign * found > sign * metric().corpus(corpus(6)[0], golds)


def test_a_corpus_of_one():
    made, golds = ["the pub is near the river"], [["the pub is near the river"]]
    assert Bleu().corpus(made, golds) == pytest.approx(1.0)
    assert Cider().corpus(made, golds) == 0.0  # log(1 item) weighs nothing, as officially
    assert Nist().corpus(made, golds) > 0


@pytest.mark.parametrize("metric", EVERY)
def test_the_number_of_references_may_vary(metric):
    made, golds = corpus(8, 3, references=(1, 1))
    more = [rs * (i % 3 + 1) for i, rs in enumerate(golds)]
    if metric not in (Nist, Cider):  # these count their references
        assert metric().corpus(made, more) == pytest.approx(metric().corpus(made, golds))
    assert len(metric().segments(made, more)) == 8


@pytest.mark.parametrize("metric", EVERY)
def test_what_is_no_corpus_is_refused(metric):
    for made, golds in (([], []), (["a"], [[]]), (["a"], [["a"], ["b"]])):
        with pytest.raises(ValueError, match="at least one reference"):
            metric().corpus(made, golds)


def test_case_and_13a_tokens():
    gold = [["The Eagle's price is £20-25, or 1,000.5 (at most)."]]
    apart = "the eagle's price is £20 - 25 , or 1,000.5 ( at most ) ."
    for metric in (Bleu, Nist):
        assert metric().corpus([apart], gold) == pytest.approx(metric().corpus(gold[0], gold))
    assert ChrF().corpus([gold[0][0].lower()], gold) < 1
    # 13a leaves an apostrophe in its word, WebNLG's convention does not.
    assert Bleu().corpus(["the eagle 's price"], [["the eagle's price"]]) < 1
    assert Bleu(words_apart).corpus(["the eagle 's price"], [["The eagle's price"]]) == (
        pytest.approx(1.0)
    )


def test_words_apart():
    assert words_apart("Café A-b,  c_d.") == "café a - b , c_d ."


@pytest.mark.parametrize(
    ("text", "expected"),
    # What Stanford's PTBTokenizer 3.4.1 gives, after coco-caption's list of punctuation.
    [
        ("It's a family-friendly pub.", "it 's a family-friendly pub"),
        ("They don't, can't and won't.", "they do n't ca n't and wo n't"),
        ("Prices: £20-25; more than £30!", "prices # 20-25 more than # 30"),
        ("Rated 5 out of 5 -- near St. John's", "rated 5 out of 5 near st. john 's"),
        ("Café Rouge (3/5), 1,000.5", "café rouge -lrb- 3/5 -rrb- 1,000.5"),
        ("Good food... and a 5-star bar..", "good food and a 5-star bar"),
        ("", ""),
        (". , ;", ""),
    ],
)
def test_ptb_tokens(text, expected):
    assert ptb_tokens.tokens(text) == expected.split()


@pytest.mark.parametrize("metric", EVERY)
def test_metrics_are_metrics_of_evaluate(metric):
    made, golds = corpus(4)
    plugged = metric()
    found = plugged.compute(predictions=made, references=golds)
    assert found == {metric.key: pytest.approx(metric().corpus(made, golds))}


def test_without_java_there_is_no_meteor(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)
    monkeypatch.setattr(meteor.hub, "fetch", lambda repo: pytest.fail("fetched for nothing"))
    meteor.fetch()
    with pytest.raises(meteor.Missing, match="no `java` on the PATH"):
        Meteor().corpus(["a"], [["a"]])


def test_offline_costs_meteor_only_and_a_wrong_archive_is_an_error(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda name: "java")
    for kind in ("offline", "error"):

        def fail(repo, kind=kind):
            raise BenchError("no", kind)

        monkeypatch.setattr(meteor.hub, "fetch", fail)
        if kind == "offline":
            meteor.fetch()
        else:
            with pytest.raises(BenchError):
                meteor.fetch()
    with pytest.raises(meteor.Missing, match="salaniz/pycocoevalcap could not be fetched"):
        Meteor().corpus(["a"], [["a"]])


def test_a_java_that_does_not_run_is_said(monkeypatch, tmp_path):
    nothing = shutil.which("false")
    monkeypatch.setattr(meteor.shutil, "which", lambda name: nothing)
    monkeypatch.setattr(meteor.hub, "find", lambda repo: tmp_path)
    with pytest.raises(meteor.Missing, match="does not run"):
        Meteor().corpus(["a"], [["a"]])


@pytest.mark.real
@pytest.mark.skipif(shutil.which("java") is None, reason="needs `java`")
def test_meteor_is_the_authors_program():
    meteor.fetch()
    made = ["The pub is near the river.", "", "A café ||| serves cheap food", "x"]
    golds = [["The pub is near the river."], ["a"], ["A café serves low-priced food", "y"], ["a b"]]
    total, each = meteor.score(made, golds)
    assert each[0] == pytest.approx(1.0)
    assert each[1] == each[3] == 0.0
    assert 0.3 < each[2] < 1
    assert 0 < total < 1


def test_the_asset_is_pinned():
    asset = pypi_assets.ASSETS[meteor.REPO]
    assert len(asset.sha256) == 64
    assert set(asset.members.values()) == {"meteor-1.5.jar", "paraphrase-en.gz"}
