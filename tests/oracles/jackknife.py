"""Jackknife values by their definition: score everything anew without each item.

The scores are their textbook formulas. No code is shared with `tasks`.
"""

import math
import statistics


def values(score, items):
    """The value of each item; `score` takes a list of items."""
    whole, n = score(items), len(items)
    without = [score(items[:i] + items[i + 1 :]) for i in range(n)]
    mean = sum(without) / n
    return [whole + (n - 1) * (mean - one) for one in without]


def counts(pairs):
    """True and false positives, then false and true negatives, of (predicted, gold)."""
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]


def f1(pairs):
    tp, fp, fn, _ = counts(pairs)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def matthews(pairs):
    tp, fp, fn, tn = counts(pairs)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0


def pearson(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1:
        return 0.0
    return statistics.correlation(x, y)


def spearman(pairs):
    """Of values without ties."""
    x, y = zip(*pairs, strict=True)
    return pearson([(sorted(x).index(a), sorted(y).index(b)) for a, b in pairs])
