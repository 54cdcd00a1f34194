"""Metrics of generated text behind the interface of `evaluate`, offline.

A metric takes one text per item and all the item's references, untokenized. It tokenizes as its
official script does:

* **E2E** (tuetschek/e2e-metrics, as LoRA and Prefix-Tuning run it: `measure_scores.py -p`). BLEU
  and NIST as in mteval-v13a: 13a tokens, case ignored, all references at once. METEOR, ROUGE-L and
  CIDEr as in coco-caption: lower-case PTB tokens without punctuation (`tasks.metrics.ptb_tokens`).
* **WebNLG** (WebNLG's GenerationEval, as LoRA runs it, but for what `tasks/README.md` lists): BLEU,
  METEOR and TER on lower-case text with spaces around every non-word character (`words_apart`);
  chrF++ on the text as it is.

Scores are fractions, except NIST (bits) and CIDEr (0 … 10).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any, ClassVar, cast

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from tasks.metrics import jackknife, meteor
from tasks.metrics.ptb_tokens import ptb_text

Texts = Sequence[str]
Tokenize = Callable[[str], str]
References = Sequence[Sequence[str]]
Counts = NDArray[np.int64]


class TextMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate is not typed
    """A score of a corpus and of each item; subclasses compute both from tokenized texts.

    Args:
        tokenize: a function from text to text that replaces the metric's `own_tokens`.

    Attributes:
        key: the score's name.
    """

    key: ClassVar[str]

    def __init__(self, tokenize: Tokenize | None = None, **kwargs: Any) -> None:
        # Nothing is shared between processes, so no cache files.
        super().__init__(**{"keep_in_memory": True, **kwargs})
        self.tokenize = tokenize or self.own_tokens

    def own_tokens(self, text: str) -> str:
        """Returns the text as the official script splits it; by default the scorer does that."""
        return text

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions: one text an item; references: its list of texts",
            features=Features(
                {"predictions": Value("string"), "references": ListOf(Value("string"))}
            ),
        )

    def _compute(self, predictions: Texts, references: References) -> dict[str, float]:
        return {self.key: self.corpus(predictions, references)}

    def corpus(self, predictions: Texts, references: References) -> float:
        """Returns the score of all items together.

        Raises:
            ValueError: no items, or an item without a text or a reference.
        """
        return self._corpus(*self._tokenized(predictions, references))

    def segments(self, predictions: Texts, references: References) -> list[float]:
        """Returns the score of each item. Raises as `corpus` does."""
        return self._segments(*self._tokenized(predictions, references))

    def items(self, predictions: Texts, references: References) -> list[float]:
        """Returns an outcome for each item, whose mean is `corpus`: jackknife values.

        Raises as `corpus` does. A metric scores as many corpora as there are items, if it does not
        define `_items`.
        """
        return self._items(*self._tokenized(predictions, references))

    def _tokenized(self, predictions: Texts, references: References) -> tuple[Texts, References]:
        if not predictions or len(predictions) != len(references) or not all(references):
            raise ValueError("a metric takes one text and at least one reference for each item")
        golds = [[self.tokenize(text) for text in texts] for texts in references]
        return [self.tokenize(text) for text in predictions], golds

    def _corpus(self, predictions: Texts, references: References) -> float:
        """Returns the corpus score; by default the mean over items."""
        found = self._segments(predictions, references)
        return sum(found) / len(found)

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        """Returns the items' scores; by default, each item is a corpus of its own."""
        return [self._corpus([p], [r]) for p, r in zip(predictions, references, strict=True)]

    def _items(self, predictions: Texts, references: References) -> list[float]:
        """Returns jackknife values; by default, scores the corpus anew without each item."""

        def score(kept: jackknife.Indices) -> float:
            return self._corpus([predictions[i] for i in kept], [references[i] for i in kept])

        return jackknife.recomputed(score, range(len(predictions)))


class Bleu(TextMetric):
    """BLEU-4 (Papineni et al. 2002) as in mteval-v13a: 13a tokens, case ignored.

    The brevity penalty takes the closest reference length.
    """

    key = "bleu"

    def _corpus(self, predictions: Texts, references: References) -> float:
        # `force` silences sacrebleu's warning that the texts look tokenized.
        scorer = BLEU(lowercase=True, tokenize="13a", force=True)
        return float(scorer.corpus_score(predictions, _streams(references)).score) / 100

    def _items(self, predictions: Texts, references: References) -> list[float]:
        # BLEU follows from sums of counts over items, so an item is left out by a subtraction.
        # `effective_order` silences a warning; the counts do not depend on it.
        scorer = BLEU(lowercase=True, tokenize="13a", force=True, effective_order=True)
        pairs = zip(predictions, references, strict=True)
        counts = np.array([_bleu_counts(scorer.sentence_score(p, rs)) for p, rs in pairs])
        total = counts.sum(axis=0)
        if len(counts) == 1:
            return [_bleu(total)]
        return jackknife.values(_bleu(total), [_bleu(total - own) for own in counts])


def _bleu_counts(score: BLEUScore) -> list[int]:
    """Returns lengths of text and reference, then matched and written n-grams by order."""
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu(counts: Counts) -> float:
    """Returns BLEU from sums of `_bleu_counts`, with the smoothing of `Bleu._corpus`."""
    length, reference, *ngrams = counts.tolist()
    half = len(ngrams) // 2
    found = BLEU.compute_bleu(ngrams[:half], ngrams[half:], length, reference, smooth_method="exp")
    return float(found.score) / 100


class ChrF(TextMetric):
    """chrF++ (Popović, WMT 2017): character 6-grams and word 2-grams, beta 2, case kept."""

    key = "chrf++"

    def _corpus(self, predictions: Texts, references: References) -> float:
        scorer = CHRF(word_order=2)
        return float(scorer.corpus_score(predictions, _streams(references)).score) / 100


class Ter(TextMetric):
    """TER (Snover et al. 2006): edits and shifts per reference word; lower is better.

    As in GenerationEval, an item's score is the smallest over its references, each divided by its
    own length, and the corpus score is the mean over items. (Tercom divides all edits by the mean
    reference length instead.)
    """

    key = "ter"

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [min(_ter(text, one) for one in gold) for text, gold in pairs]


@cache
def _ter(text: str, reference: str) -> float:
    """Returns one TER; cached, because a part of a test set is scored after the whole of it."""
    return float(TER().sentence_score(text, [reference]).score) / 100


class Meteor(TextMetric):
    """METEOR 1.5; raises `tasks.metrics.meteor.Missing` where it cannot be computed."""

    key = "meteor"

    def own_tokens(self, text: str) -> str:
        """Returns PTB tokens."""
        return ptb_text(text)

    def _corpus(self, predictions: Texts, references: References) -> float:
        return meteor.score(predictions, references)[0]

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        return meteor.score(predictions, references)[1]


def words_apart(text: str) -> str:
    """Lower-cases and makes every non-word character a token: `A-b, c.` → `a - b , c .`."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text.lower()).split())


def _streams(references: References) -> list[list[str]]:
    """Returns the first references of all items, the second ones, …, as sacrebleu takes them."""
    streams = zip_longest(*references)
    # sacrebleu takes None where an item has fewer references; its annotations do not say so.
    return cast(list[list[str]], [list(stream) for stream in streams])
