"""Synthetic twins of the tasks, for tests and CI: seconds instead of minutes, and no download.

The words are `w0` … `w255`. All rows are drawn by seeds that the task's name determines:

| task | rows | what there is to learn |
|---|---|---|
| `tiny/reviews` | sentences | which of two groups of signal words occurs |
| `tiny/wikitext` | lines of a Markov chain | which words follow a word |
| `tiny/nlg` | a few words, and two texts for them | the phrase for each word |
| `tiny/zero-shot` | starts of `tiny/wikitext`'s lines, four endings each | the same chain |
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import Budget, Source
from bench.core import provenance, seeds
from tasks.shared.base import Splits
from tasks.shared.classification import Classification, Rows
from tasks.shared.data_to_text import DataToText, Items, group
from tasks.shared.language import Language
from tasks.shared.zero_shot_sets import ZeroShotSet
from tasks.zero_shot import ZeroShot, rows_of

if TYPE_CHECKING:
    from tasks.metrics.text import TextMetric

WORDS = 256
"""Number of words."""
SIGNAL = 16
"""Number of signal words of `tiny/reviews`: the first half says label 0, the second label 1."""
INPUT_WORDS = range(SIGNAL, SIGNAL + 12)
"""Words of `tiny/nlg`'s inputs."""
PHRASE_WORDS = range(64, WORDS)
"""Words of `tiny/nlg`'s texts."""
CHOICES, ENDING = 4, 4
"""Endings of a question of `tiny/zero-shot`, and words of an ending."""

_REPO = "synthetic"


def sentences(n: int, seed: int) -> Rows:
    """Draws `n` distinct sentences of 4–16 words, labelled by which signal words they hold.

    A sentence holds three signal words of one label, among words that say nothing.
    """
    draw = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < n:
        label = draw.randrange(2)
        signal = [label * SIGNAL // 2 + draw.randrange(SIGNAL // 2) for _ in range(3)]
        noise = [draw.randrange(SIGNAL, WORDS) for _ in range(draw.randrange(1, 14))]
        words = signal + noise
        draw.shuffle(words)
        found.setdefault(_text(words), label)
    return Rows(list(found), None, list(found.values()))


def lines(n: int, seed: int) -> list[str]:
    """Draws `n` distinct lines of 8–40 words from a Markov chain.

    A word has three successors, one of them likely. Successors are drawn with weights 1 / rank, so
    that some words are frequent, as in a language.
    """
    draw = random.Random(seed)
    weights = [1 / (i + 1) for i in range(WORDS)]
    after = [draw.choices(range(WORDS), weights, k=3) for _ in range(WORDS)]
    found: dict[str, None] = {}
    while len(found) < n:
        words = [draw.randrange(WORDS)]
        while len(words) < 8 or (len(words) < 40 and draw.random() < 0.95):
            words += draw.choices(after[words[-1]], (8, 1, 1))
        found[_text(words)] = None
    return list(found)


def inputs_with_texts(n: int, seed: int) -> Items:
    """Draws `n` distinct inputs of 1–3 words, each with two texts.

    A text says the input's words in their order. Each word has a phrase of 3 or 4 words, whose last
    word differs between the two texts.
    """
    draw = random.Random(seed)
    unused = list(PHRASE_WORDS)
    draw.shuffle(unused)
    phrases = {w: [unused.pop() for _ in range(draw.randrange(2, 4))] for w in INPUT_WORDS}
    endings = {w: (unused.pop(), unused.pop()) for w in INPUT_WORDS}
    found: dict[str, list[str]] = {}
    while len(found) < n:
        words = draw.sample(INPUT_WORDS, k=draw.randrange(1, 4))
        texts = [[p for w in words for p in (*phrases[w], endings[w][way])] for way in (0, 1)]
        found[_text(words)] = [_text(text) for text in texts]
    return group((input_, text) for input_, texts in found.items() for text in texts)


def questions() -> Iterator[dict[str, Any]]:
    """Yields the test lines of `tiny/wikitext` without their last words, with four endings.

    The wrong endings are those of other lines: a model that knows the chain sees that they do not
    follow.
    """
    draw = random.Random(seeds.derive("tiny/zero-shot"))
    found = [line.split() for line in TinyWikitext("tiny/wikitext").data.test]
    for words in found:
        label = draw.randrange(CHOICES)
        endings = [draw.choice(found)[-ENDING:] for _ in range(CHOICES)]
        endings[label] = words[-ENDING:]
        yield {
            "context": " ".join(words[:-ENDING]),
            "choices": [" ".join(ending) for ending in endings],
            "label": label,
        }


def _text(words: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in words)


class TinyReviews(Classification):
    """The twin of `reviews`: a two-layer model learns it in a few dozen steps."""

    budgets = {"default": Budget(steps=60, batch=16, length=20, calib=32, timeout_s=300)}

    def _load(self) -> Splits[Rows]:
        rows = sentences(1500, seeds.derive("tiny/reviews"))
        return Splits(
            train=rows.take(range(1000)),
            select=rows.take(range(1000, 1200)),
            test=rows.take(range(1200, 1500)),
            repo=_REPO,
            revision=f"version {self.version}",
            select_rule="rows 1000 to 1200",
        )


class TinyWikitext(Language):
    """The twin of `wikitext`: bigrams that a two-layer model learns in a few dozen steps."""

    budgets = {"default": Budget(steps=60, batch=16, length=32, calib=32, timeout_s=300)}

    def _load(self) -> Splits[list[str]]:
        rows = lines(1500, seeds.derive("tiny/wikitext"))
        return Splits(
            train=rows[:1000],
            select=rows[1000:1200],
            test=rows[1200:],
            repo=_REPO,
            revision=f"version {self.version}",
            select_rule="rows 1000 to 1200",
        )


class TinyNlg(DataToText):
    """The twin of `nlg/*`: a phrase for every input word."""

    limit = 60
    budgets = {
        "default": Budget(
            steps=200, batch=32, length=40, calib=32, timeout_s=300, beams=2, smoothing=0.1
        )
    }

    def metrics(self) -> Sequence[TextMetric]:
        """Returns those that need nothing but Python."""
        from tasks.metrics.ngram import Cider, Nist, RougeL  # `plan` starts without evaluate
        from tasks.metrics.text import Bleu, ChrF, Ter

        return Bleu(), Nist(), RougeL(), Cider(), Ter(), ChrF()

    def _load(self) -> Splits[Items]:
        items = inputs_with_texts(700, seeds.derive("tiny/nlg"))
        return Splits(
            train=items.take(range(600)),
            select=items.take(range(600, 640)),
            test=items.take(range(640, 700)),
            repo=_REPO,
            revision=f"version {self.version}",
            select_rule="inputs 600 to 640",
        )


_DEFINITION = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


class TinyZeroShot(ZeroShot):
    """The twin of `zero-shot`: which ending follows, learnable by retraining on the chain."""

    known_sets = {
        "tiny_endings": ZeroShotSet(
            "tiny_endings", _REPO, "default", "test", 300, lambda _: questions()
        )
    }
    mean_over = ("tiny_endings",)
    budgets = {"default": Budget(steps=60, batch=16, length=64, calib=32, timeout_s=300)}

    def prepare(self) -> None:
        """Fetches nothing."""

    def _load(self) -> Splits[list[str]]:
        return TinyWikitext("tiny/wikitext").data

    def source(self) -> Source:
        """Returns the source with a sha256 over the questions."""
        return Source(
            repo=_REPO,
            revision=f"version {self.version}",
            fingerprint=provenance.rows_sha256(questions()),
            select="none; calibration and retraining text: tiny/wikitext",
        )

    def definitions(self, folder: Path) -> tuple[Any, list[str]]:
        """Writes a task definition and its rows; returns lm-eval's task manager and the path."""
        from lm_eval.tasks import TaskManager

        (only,) = self.sets
        rows, path = folder / "rows.jsonl", folder / f"{only.task}.yaml"
        rows.write_text("".join(json.dumps(row) + "\n" for row in questions()))
        definition = {"task": only.task, **rows_of(only.split, "json", rows), **_DEFINITION}
        path.write_text(json.dumps(definition))  # JSON is YAML
        return TaskManager(include_defaults=False), [str(path)]
