"""Synthetic twins of the tasks, for tests and CI: seconds instead of minutes, no download."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.api import Budget, Source
from bench.core import provenance, seeds
from tasks.metrics.ngram import Cider, Nist, RougeL
from tasks.metrics.text import Bleu, ChrF, Ter
from tasks.shared.classification import Classification, Data, Rows
from tasks.shared.data_to_text import DataToText, Splits, group
from tasks.shared.language import Language, Texts
from tasks.shared.zero_shot_sets import Set
from tasks.zero_shot import ZeroShot, lm_eval

WORDS = 256
SIGNAL = 16


def sentences(n: int, seed: int) -> Rows:
    """`n` distinct sentences of 4–16 words `w0 … w255`, labelled by which signal words they hold.

    A sentence holds words from w0…w7 (label 0) or from w8…w15 (label 1), never from both, among
    words that say nothing.
    """
    draw = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < n:
        label = draw.randrange(2)
        signal = [label * SIGNAL // 2 + draw.randrange(SIGNAL // 2) for _ in range(3)]
        noise = [draw.randrange(SIGNAL, WORDS) for _ in range(draw.randrange(1, 14))]
        words = signal + noise
        draw.shuffle(words)
        found.setdefault(" ".join(f"w{i}" for i in words), label)
    return Rows(list(found), None, list(found.values()))


class TinyReviews(Classification):
    """The twin of `reviews`: learnable by a two-layer model in a few dozen steps."""

    budgets = {"default": Budget(steps=60, batch=16, length=20, calib=32, timeout_s=300)}

    def _load(self) -> Data:
        rows = sentences(1500, seeds.derive("tiny/reviews"))
        train, select, test = (
            rows.take(list(range(*bounds))) for bounds in ((0, 1000), (1000, 1200), (1200, 1500))
        )
        return Data(
            train=train,
            select=select,
            test=test,
            repo="synthetic",
            revision=f"version {self.version}",
            select_rule="rows 1000 to 1200",
        )


def lines(n: int, seed: int) -> list[str]:
    """`n` distinct lines of 8–40 words, a Markov chain: a word has three successors, one likely.

    Successors are drawn with weights 1 / rank, so that some words are frequent, as in a language.
    """
    draw = random.Random(seed)
    weights = [1 / (i + 1) for i in range(WORDS)]
    after = [draw.choices(range(WORDS), weights, k=3) for _ in range(WORDS)]
    found: dict[str, None] = {}
    while len(found) < n:
        words = [draw.randrange(WORDS)]
        while len(words) < 8 or (len(words) < 40 and draw.random() < 0.95):
            words += draw.choices(after[words[-1]], (8, 1, 1))
        found[" ".join(f"w{i}" for i in words)] = None
    return list(found)


class TinyWikitext(Language):
    """The twin of `wikitext`: bigrams that a two-layer model learns in a few dozen steps."""

    budgets = {"default": Budget(steps=60, batch=16, length=32, calib=32, timeout_s=300)}

    def _load(self) -> Texts:
        rows = lines(1500, seeds.derive("tiny/wikitext"))
        return Texts(
            train=rows[:1000],
            select=rows[1000:1200],
            test=rows[1200:],
            repo="synthetic",
            revision=f"version {self.version}",
            select_rule="rows 1000 to 1200",
        )


def orders(n: int, seed: int) -> list[tuple[str, list[str]]]:
    """`n` distinct inputs of 1–3 words, each with two texts that say every word in its order.

    A word of w16 … w27 is said with a phrase of its own, of 3 or 4 words, in one of two ways that
    differ in the last word.
    """
    draw = random.Random(seed)
    values = range(SIGNAL, SIGNAL + 12)
    rest = [f"w{i}" for i in range(64, WORDS)]
    draw.shuffle(rest)
    phrases = {v: [rest.pop() for _ in range(draw.randrange(2, 4))] for v in values}
    endings = {v: (rest.pop(), rest.pop()) for v in values}
    found: dict[str, list[str]] = {}
    while len(found) < n:
        chosen = draw.sample(values, k=draw.randrange(1, 4))
        texts = [[w for v in chosen for w in (*phrases[v], endings[v][way])] for way in (0, 1)]
        found[" ".join(f"w{v}" for v in chosen)] = [" ".join(text) for text in texts]
    return list(found.items())


class TinyNlg(DataToText):
    """The twin of `nlg/*`: a phrase for every input word."""

    limit = 60

    budgets = {
        "default": Budget(
            steps=200, batch=32, length=40, calib=32, timeout_s=300, beams=2, smoothing=0.1
        )
    }

    def metrics(self):
        """Those that need nothing but Python."""
        return Bleu(), Nist(), RougeL(), Cider(), Ter(), ChrF()

    def _load(self) -> Splits:
        found = orders(700, seeds.derive("tiny/nlg"))
        items = group((input_, text) for input_, texts in found for text in texts)
        train, select, test = (
            items.take(range(*bounds)) for bounds in ((0, 600), (600, 640), (640, 700))
        )
        return Splits(
            train=train,
            select=select,
            test=test,
            repo="synthetic",
            revision=f"version {self.version}",
            select_rule="inputs 600 to 640",
        )


CHOICES = 4
ENDING = 4

_DEFINITION = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def questions(_: Any = None) -> Iterator[dict[str, Any]]:
    """Lines of `tiny/wikitext`'s chain without their last words, and four endings.

    The wrong ones are endings of other lines; who knows the chain sees that they do not follow.
    """
    draw = random.Random(seeds.derive("tiny/zero-shot"))
    found = [line.split() for line in lines(1500, seeds.derive("tiny/wikitext"))[1200:]]
    for words in found:
        label = draw.randrange(CHOICES)
        endings = [draw.choice(found)[-ENDING:] for _ in range(CHOICES)]
        endings[label] = words[-ENDING:]
        yield {
            "context": " ".join(words[:-ENDING]),
            "choices": [" ".join(ending) for ending in endings],
            "label": label,
        }


class TinyZeroShot(ZeroShot):
    """The twin of `zero-shot`: which ending follows, learnable by retraining on the chain."""

    budgets = {"default": Budget(steps=60, batch=16, length=64, calib=32, timeout_s=300)}

    def __init__(self, name: str) -> None:
        super().__init__("zero-shot")
        self.name = name
        self.sets = [Set("tiny_endings", "synthetic", "default", "test", 300, questions)]
        self.averaged = ["tiny_endings"]
        self.limit = 300

    def prepare(self) -> None:
        """There is nothing to fetch, but lm-eval must be there."""
        lm_eval()

    def _load(self) -> Texts:
        return TinyWikitext("tiny/wikitext").data

    def source(self) -> Source:
        """A sha256 over the questions."""
        return Source(
            repo="synthetic",
            revision=f"version {self.version}",
            fingerprint=provenance.rows_sha256(questions()),
            select="none; calibration and retraining text: tiny/wikitext",
        )

    def definitions(self, folder: Path) -> tuple[Any, list[str]]:
        """lm-eval's task manager, and a definition with its rows beside it."""
        from lm_eval.tasks import TaskManager

        (only,) = self.sets
        rows, path = folder / "rows.jsonl", folder / f"{only.task}.yaml"
        rows.write_text("".join(json.dumps(row) + "\n" for row in questions()))
        path.write_text(_DEFINITION.format(task=only.task, file=rows))
        return TaskManager(include_defaults=False), [str(path)]
