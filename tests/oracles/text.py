"""CIDEr, ROUGE-L, NIST and BLEU as their definitions have them: slow, one step a line.

Everything takes lists of words. No code is shared with `tasks`.
"""

import math


def ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def subsequences(words):
    """All subsequences: for texts of a dozen words at most."""
    found = {()}
    for word in words:
        found |= {(*s, word) for s in found}
    return found


def rouge_l(hypothesis, references, beta=1.2):
    def common(reference):
        return max(len(s) for s in subsequences(hypothesis) & subsequences(reference))

    if not hypothesis:
        return 0.0
    precision = max(common(r) / len(hypothesis) for r in references)
    recall = max(common(r) / len(r) for r in references)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def cider(hypotheses, references, sigma=6.0):
    """A score an item (CIDEr-D with coco-caption's habits)."""
    n_items = len(references)

    def idf(gram):
        items = sum(any(gram in ngrams(r, len(gram)) for r in rs) for rs in references)
        return math.log(n_items) - math.log(max(1, items))

    def vector(words, n, vocabulary):
        return [ngrams(words, n).count(g) * idf(g) for g in vocabulary]

    scores = []
    for hypothesis, rs in zip(hypotheses, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for r in rs:
                vocabulary = sorted({*ngrams(hypothesis, n), *ngrams(r, n)})
                h, g = vector(hypothesis, n, vocabulary), vector(r, n, vocabulary)
                dot = sum(min(a, b) * b for a, b in zip(h, g, strict=True))
                norm = math.sqrt(sum(a * a for a in h)) * math.sqrt(sum(b * b for b in g))
                length = len(ngrams(hypothesis, 2)) - len(ngrams(r, 2))
                similarity = dot / norm if norm else 0.0
                total += similarity * math.exp(-(length**2) / (2 * sigma**2)) / len(rs)
        scores.append(10 * total / 4)
    return scores


def clipped(hypothesis, references, n):
    """{n-gram: occurrences in the hypothesis, at most as often as in one reference}."""
    return {
        g: min(ngrams(hypothesis, n).count(g), max(ngrams(r, n).count(g) for r in references))
        for g in set(ngrams(hypothesis, n))
    }


def bleu(hypotheses, references):
    """Corpus BLEU-4 where every order has a match."""
    log_precision = 0.0
    for n in (1, 2, 3, 4):
        pairs = list(zip(hypotheses, references, strict=True))
        hits = sum(sum(clipped(h, rs, n).values()) for h, rs in pairs)
        size = sum(len(ngrams(h, n)) for h in hypotheses)
        log_precision += math.log(hits / size) / 4
    own = sum(map(len, hypotheses))
    closest = sum(
        min((abs(len(r) - len(h)), len(r)) for r in rs)[1]
        for h, rs in zip(hypotheses, references, strict=True)
    )
    return math.exp(log_precision) * min(1.0, math.exp(1 - closest / own))


def nist(hypotheses, references):
    every = [r for rs in references for r in rs]

    def count(gram):
        if not gram:
            return sum(map(len, every))
        return sum(ngrams(r, len(gram)).count(gram) for r in every)

    total = 0.0
    for n in (1, 2, 3, 4, 5):
        gain = sum(
            hits * math.log2(count(g[:-1]) / count(g))
            for h, rs in zip(hypotheses, references, strict=True)
            for g, hits in clipped(h, rs, n).items()
            if hits
        )
        size = sum(len(ngrams(h, n)) for h in hypotheses)
        total += gain / size if size else 0.0
    own = sum(map(len, hypotheses))
    mean = sum(sum(map(len, rs)) / len(rs) for rs in references)
    ratio = own / mean
    if ratio == 0:
        return 0.0
    beta = -math.log(0.5) / math.log(1.5) ** 2
    return total * (1.0 if ratio >= 1 else math.exp(-beta * math.log(ratio) ** 2))
