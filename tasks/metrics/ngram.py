"""NIST, ROUGE-L and CIDEr as in the E2E script.

The libraries that were tried, and how their numbers or sizes differ, are in `tasks/README.md`.
`tests/test_text_metrics.py` compares these with brute force and with nltk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from tasks.metrics.ptb_tokens import ptb_text
from tasks.metrics.text import References, TextMetric, Texts

Ngram = tuple[str, ...]


class Nist(TextMetric):
    """NIST-5 (Doddington 2002) in bits, as in mteval-v13a: 13a tokens, case ignored.

    Matches are clipped by the largest count in any one reference, and the brevity penalty takes
    the mean reference length. (nltk takes the best single reference instead. Where references vary
    in number, mteval's Perl also divides by the largest number; e2e-metrics calls that wrong, and
    its Python version, which LoRA ran, does not.)
    """

    key = "nist"
    order = 5

    def _corpus(self, predictions: Texts, references: References) -> float:
        hypotheses = [_tokens_13a(p) for p in predictions]
        golds = [[_tokens_13a(r) for r in rs] for rs in references]
        seen = Counter(g for rs in golds for r in rs for g in _ngrams(r, self.order))
        seen[()] = sum(len(r) for rs in golds for r in rs)
        gains, sizes = [0.0] * (self.order + 1), [0] * (self.order + 1)
        for hypothesis, rs in zip(hypotheses, golds, strict=True):
            most: Counter[Ngram] = Counter()
            for r in rs:
                most |= Counter(_ngrams(r, self.order))
            for ngram, count in (Counter(_ngrams(hypothesis, self.order)) & most).items():
                information = math.log2(seen[ngram[:-1]] / seen[ngram])
                gains[len(ngram)] += count * information
            for n in range(1, self.order + 1):
                sizes[n] += max(len(hypothesis) - n + 1, 0)
        mean_length = sum(sum(map(len, rs)) / len(rs) for rs in golds)
        total = sum(gain / max(size, 1) for gain, size in zip(gains, sizes, strict=True))
        return total * self._penalty(sizes[1] / mean_length)

    @staticmethod
    def _penalty(ratio: float) -> float:
        """Returns the brevity penalty: 1/2 where texts are 2/3 as long as the references."""
        if ratio <= 0:
            return 0.0
        return math.exp(math.log(0.5) * (min(math.log(ratio), 0.0) / math.log(1.5)) ** 2)


class RougeL(TextMetric):
    """ROUGE-L (Lin 2004) as in coco-caption: F with beta 1.2, mean over items.

    Precision and recall are each the largest over the references, not always of the same one.
    """

    key = "rouge_l"
    beta = 1.2

    def own_tokens(self, text: str) -> str:
        """Returns PTB tokens."""
        return ptb_text(text)

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        return [self._one(p, r) for p, r in zip(predictions, references, strict=True)]

    def _one(self, prediction: str, references: Sequence[str]) -> float:
        words, golds = prediction.split(), [r.split() for r in references]
        common = [_longest_common(words, gold) for gold in golds]
        if not any(common):
            return 0.0
        precision = max(common) / len(words)
        recall = max(c / max(len(gold), 1) for c, gold in zip(common, golds, strict=True))
        square = self.beta**2
        return (1 + square) * precision * recall / (recall + square * precision)


class Cider(TextMetric):
    """CIDEr-D (arXiv 1411.5726) as in coco-caption: n = 1 … 4, sigma 6, from 0 to 10.

    Document frequencies come from the references of the items scored, so a score belongs to its
    set of items, and a single item scores 0. The length in the Gaussian is the number of bigrams.
    """

    key = "cider"
    order, sigma = 4, 6.0

    def own_tokens(self, text: str) -> str:
        """Returns PTB tokens."""
        return ptb_text(text)

    def _segments(self, predictions: Texts, references: References) -> list[float]:
        counts = [[Counter(_ngrams(r.split(), self.order)) for r in rs] for rs in references]
        documents = Counter(ngram for rs in counts for ngram in set().union(*rs))
        log_items = math.log(len(counts))

        def weigh(count: Counter[Ngram]) -> list[dict[Ngram, float]]:
            """Returns tf-idf weights by order."""
            vectors: list[dict[Ngram, float]] = [{} for _ in range(self.order)]
            for ngram, n in count.items():
                weight = n * (log_items - math.log(max(documents[ngram], 1)))
                vectors[len(ngram) - 1][ngram] = weight
            return vectors

        found = []
        for prediction, rs in zip(predictions, counts, strict=True):
            own = Counter(_ngrams(prediction.split(), self.order))
            hypothesis, length = weigh(own), _bigrams(own)
            total = 0.0
            for r in rs:
                gauss = math.exp(-((length - _bigrams(r)) ** 2) / (2 * self.sigma**2))
                pairs = zip(hypothesis, weigh(r), strict=True)
                total += gauss * sum(_clipped_cosine(a, b) for a, b in pairs)
            found.append(10 * total / self.order / len(rs))
        return found


_tokenize_13a = Tokenizer13a()


def _tokens_13a(text: str) -> list[str]:
    tokenized: str = _tokenize_13a(text.lower())
    return tokenized.split()


def _ngrams(words: Sequence[str], order: int) -> Iterable[Ngram]:
    """Yields all n-grams of 1 … `order` words."""
    return (tuple(words[i : i + n]) for n in range(1, order + 1) for i in range(len(words) - n + 1))


def _bigrams(count: Counter[Ngram]) -> int:
    return sum(n for ngram, n in count.items() if len(ngram) == 2)


def _clipped_cosine(a: dict[Ngram, float], b: dict[Ngram, float]) -> float:
    """Returns the cosine of a and b with a's weights cut to b's; 0 for an empty side."""
    norm = math.hypot(*a.values()) * math.hypot(*b.values())
    dot = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
    return dot / norm if norm else 0.0


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b):
            here = row[j + 1]
            row[j + 1] = before + 1 if word == other else max(here, row[j])
            before = here
    return row[-1]
