"""Metrics of generated text behind the interface of `evaluate`, offline.

A metric takes one hypothesis an item and all the item's references as plain text; it tokenizes as
its official script does:

* **E2E** (tuetschek/e2e-metrics, as LoRA and Prefix-Tuning run it: `measure_scores.py -p`). BLEU
  and NIST as in mteval-v13a: 13a tokens, case ignored, all references at once, the closest
  reference length. METEOR, ROUGE-L and CIDEr as in coco-caption: lower-case PTB tokens without
  punctuation (`tasks.metrics.ptb_tokens`).
* **WebNLG** (WebNLG's GenerationEval, as LoRA runs it): BLEU, METEOR and TER on lower-case text
  with every non-word character apart (`words_apart`); chrF++ on the text as it is.

Scores are fractions, except NIST (bits) and CIDEr (0 … 10).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf
from sacrebleu.metrics import BLEU, CHRF, TER

from tasks.metrics import meteor, ptb_tokens

Texts = Sequence[str]
Tokenize = Callable[[str], str]
References = Sequence[Sequence[str]]


def ptb_text(text: str) -> str:
    """PTB tokens with spaces between them."""
    return " ".join(ptb_tokens.tokens(text))


class TextMetric(evaluate.Metric):
    """A corpus score and a score a segment; subclasses compute both from tokenized texts.

    Args:
        tokenize: text to text, instead of the metric's own `default`.

    Attributes:
        key: the score's name.
    """

    key: ClassVar[str]
    default: ClassVar[Tokenize] = staticmethod(str)

    def __init__(self, tokenize: Tokenize | None = None, **kwargs) -> None:
        # Nothing is shared between processes, so no cache files.
        super().__init__(**{"keep_in_memory": True, **kwargs})
        self.tokenize = tokenize or self.default

    def _info(self):
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions: one text an item; references: its list of texts",
            features=Features(
                {"predictions": Value("string"), "references": ListOf(Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        return {self.key: self.corpus(predictions, references)}

    def corpus(self, predictions: Texts, references: References) -> float:
        """The score of all items together."""
        return self._corpus(*self._tokenized(predictions, references))

    def segments(self, predictions: Texts, references: References) -> list[float]:
        """A score an item."""
        return self._segments(*self._tokenized(predictions, references))

    def _tokenized(self, predictions: Texts, references: References) -> tuple[Texts, References]:
        if not predictions or len(predictions) != len(references) or not all(references):
            raise ValueError("a metric takes one text an item and at least one reference for each")
        golds = [[self.tokenize(text) for text in texts] for texts in references]
        return [self.tokenize(text) for text in predictions], golds

    def _corpus(self, predictions: Texts, references: References) -> float:
        """By default the mean over items."""
        found = self._segments(predictions, references)
        return sum(found) / len(found)

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        """By default each item as a corpus of its own."""
        return [self._corpus([p], [r]) for p, r in zip(predictions, references, strict=True)]


class Bleu(TextMetric):
    """BLEU-4 (Papineni et al. 2002) as mteval-v13a has it: 13a tokens, case ignored.

    A segment's score is sacrebleu's sentence BLEU: exponential smoothing, effective order.
    """

    key = "bleu"

    def _corpus(self, predictions: Texts, references: References) -> float:
        # Our texts may well be tokenized already: `force` keeps sacrebleu from a warning.
        scorer = BLEU(lowercase=True, tokenize="13a", force=True)
        return scorer.corpus_score(predictions, _streams(references)).score / 100

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        scorer = BLEU(lowercase=True, tokenize="13a", force=True, effective_order=True)
        pairs = zip(predictions, references, strict=True)
        return [scorer.sentence_score(p, r).score / 100 for p, r in pairs]


class ChrF(TextMetric):
    """chrF++ (Popović, WMT 2017): character 6-grams and word 2-grams, beta 2, case kept."""

    key = "chrf++"

    def _corpus(self, predictions: Texts, references: References) -> float:
        return CHRF(word_order=2).corpus_score(predictions, _streams(references)).score / 100


class Ter(TextMetric):
    """TER (Snover et al. 2006): edits and shifts a reference word; lower is better.

    As in GenerationEval: the least over the references, each by its own length, and the mean over
    items. (Tercom divides all edits by the mean reference length instead.)
    """

    key = "ter"

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [min(_ter(text, one) for one in gold) for text, gold in pairs]


@cache
def _ter(text: str, reference: str) -> float:
    """Kept, because a part of a test set is scored after the whole of it."""
    return TER().sentence_score(text, [reference]).score / 100


class Meteor(TextMetric):
    """METEOR 1.5; raises `tasks.metrics.meteor.Missing` where it cannot be computed."""

    key = "meteor"
    default = staticmethod(ptb_text)

    def _corpus(self, predictions: Texts, references: References) -> float:
        return meteor.score(predictions, references)[0]

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        return meteor.score(predictions, references)[1]


def words_apart(text: str) -> str:
    """Lower case, every non-word character a token: `A-b, c.` becomes `a - b , c .`."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text.lower()).split())


def _streams(references: References) -> list[list[str | None]]:
    """References by rank instead of by item, as sacrebleu takes them; None where one has fewer."""
    most = max(map(len, references))
    return [[rs[i] if i < len(rs) else None for rs in references] for i in range(most)]
