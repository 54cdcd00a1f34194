"""How often the paired test is wrong on metrics that are no mean of items.

    python -m tests.benchmarks.simulate_metrics [DRAWS [METRIC …]]

Two methods that are equal in the population are scored on the same items with the same seeds. The
table has the share of draws that are told apart at 5 %: over seeds × items by jackknife values, and
over seeds alone.
"""

import bisect
import sys

import numpy as np

from bench.reporting import statistics
from tasks.metrics import jackknife

# Standard deviations on the scale of the items' easiness: method × item, seed, seed × item.
NOISE = {
    "seeds and seeds × items": (0.0, 0.1, 0.2),
    "items and seeds × items": (0.3, 0.0, 0.3),
    "items and seeds": (0.3, 0.05, 0.3),
    "items, more of seeds": (0.2, 0.2, 0.3),
    "items, no seed moves anything": (0.3, 0.0, 0.0),
}
POSITIVE = 0.3
"""Share of positive items."""


def noises(rng, shape, noise):
    """Noise of (methods, seeds, items) around an easiness that all share, of variance 1."""
    methods, _, items = shape
    by_item, _, by_both = noise
    x = rng.standard_normal(items) + by_item * rng.standard_normal((methods, 1, items))
    x = x + by_both * rng.standard_normal(shape)
    return x / np.sqrt(1 + by_item**2 + by_both**2)


def of_seeds(rng, shape, noise):
    """What a seed adds to all items, (methods, seeds, 1)."""
    return noise[1] * rng.standard_normal((*shape[:2], 1))


def classes(rng, shape, noise):
    """Predicted and gold classes; a seed moves the threshold and the skill."""
    gold = rng.random(shape[2]) < POSITIVE
    skill = 1 + of_seeds(rng, shape, noise)
    z = skill * np.where(gold, 1, -1) + of_seeds(rng, shape, noise) + noises(rng, shape, noise)
    return (z > 0).astype(int), gold.astype(int)


def numbers(rng, shape, noise):
    """Predicted and gold numbers, correlated by 0.8; a seed moves the errors' size."""
    gold = rng.standard_normal(shape[2])
    error = 0.75 * np.exp(of_seeds(rng, shape, noise))
    return gold + error * noises(rng, shape, noise), gold


def counts(rng, shape, noise):
    """Matched and written unigrams and bigrams, (…, items, 4), and lengths of references.

    Texts are as long as references on average, where the brevity penalty has its kink.
    """
    reference = rng.integers(6, 40, shape[2]).astype(float)
    longer = 0.1 * noises(rng, shape, noise) + 0.2 * of_seeds(rng, shape, noise)
    written = np.maximum(np.round(reference * np.exp(longer)), 2)
    share = 1 / (1 + np.exp(-0.5 - noises(rng, shape, noise) - of_seeds(rng, shape, noise)))
    ones, twos = rng.random((2, *shape[2:]))  # what rounding leaves to luck, the same for all
    matched = [np.floor(share * written + ones), np.floor(share**2 * (written - 1) + twos)]
    return np.stack([*matched, written, written - 1], -1), reference


def by_class(score):
    """A metric of classes: its scores and jackknife values, (methods, seeds) and with items."""

    def scored(predicted, gold):
        kind = 2 * predicted + gold  # tn, fn, fp, tp
        counted = np.stack([(kind == k).sum(-1) for k in range(4)])
        without = [score(*(counted - np.eye(4, dtype=int)[k][:, None, None])) for k in range(4)]
        return with_values(score(*counted), np.choose(kind, [w[..., None] for w in without]))

    return scored


def with_values(scores, without):
    """Scores, and jackknife values of scores without each item."""
    flat = zip(scores.ravel(), without.reshape(scores.size, -1), strict=True)
    return scores, np.array([jackknife.values(s, w) for s, w in flat]).reshape(without.shape)


def f1(tn, fn, fp, tp):
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def matthews(tn, fn, fp, tp):
    below = np.sqrt(1.0 * (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.where(below > 0, (1.0 * tp * tn - fp * fn) / np.maximum(below, 1e-9), 0.0)


def spearman(predicted, gold):
    """Spearman's correlation of values without ties.

    Without an item, the ranks above its own fall by 1.
    """
    n = len(gold)
    order = gold.argsort()
    own = np.arange(1.0, n + 1)
    products, without = [], []
    for row in predicted.reshape(-1, n)[:, order]:
        ascending = row.argsort()
        rank = ascending.argsort() + 1
        # Sums over the items above an item, by one of the ranks or by both.
        by_own = rank.sum() - np.cumsum(rank)
        by_rank = np.empty(n)
        by_rank[ascending] = own.sum() - np.cumsum(own[ascending])
        by_both = higher_later(rank.tolist())
        product = rank @ own
        # Sums over the others of (rank − 1 if above) (own − 1 if above).
        left = np.empty(n)
        left[order] = product - rank * own - by_own - by_rank + by_both
        products.append(product)
        without.append(correlation(left, n - 1))
    scores = correlation(np.array(products), n).reshape(predicted.shape[:-1])
    return with_values(scores, np.array(without).reshape(predicted.shape))


def higher_later(ranks):
    """How many of the later ranks are higher, for each."""
    seen, found = [], []
    for rank in reversed(ranks):
        at = bisect.bisect(seen, rank)
        found.append(len(seen) - at)
        seen.insert(at, rank)
    return np.array(found[::-1])


def correlation(product, n):
    """Correlation of two rankings of n items from the sum of their products."""
    return (product - n * (n + 1) ** 2 / 4) / (n * (n**2 - 1) / 12)


def bleu(counted, reference):
    """BLEU-2: ratios of sums, with the brevity penalty."""

    def score(sums, lengths):
        penalty = np.minimum(1.0, np.exp(1 - lengths / sums[..., 2]))
        return penalty * np.sqrt(sums[..., 0] / sums[..., 2] * sums[..., 1] / sums[..., 3])

    sums = counted.sum(-2)
    without = score(sums[..., None, :] - counted, reference.sum() - reference)
    return with_values(score(sums, reference.sum()), without)


METRICS = {
    "f1": by_class(f1),
    "matthews": by_class(matthews),
    "spearman": spearman,
    "bleu": bleu,
}
DRAWN = {"f1": classes, "matthews": classes, "spearman": numbers, "bleu": counts}


def draw(metric, rng, seeds, items, noise):
    """What two equal methods predict, and the gold answers."""
    return DRAWN[metric](rng, (2, seeds, items), noise)


def rates(metric, draws, seeds, items, noise):
    """Shares of draws of two equal methods that are told apart at 5 %.

    NaN for seeds alone where no seed moves anything: there is nothing to test.
    """
    rng = np.random.default_rng([seeds, items])
    p = []
    for _ in range(draws):
        scores, values = METRICS[metric](*draw(metric, rng, seeds, items, noise))
        tested = (values, scores[..., None])
        p.append([statistics.pairwise(x).p[0, 1] for x in tested])
    by_items, alone = np.array(p).T
    return {
        "items": np.mean(by_items < 0.05),
        "seeds": np.mean(alone < 0.05) if any(noise[1:]) else np.nan,
    }


def main(draws=1000, *metrics):
    """Prints the table."""
    for seeds in (3, 5):
        for items in (300, 1000):
            print(f"\ntold apart, two equals, {seeds} seeds × {items} items: items, (seeds alone)")
            for name, noise in NOISE.items():
                cells = []
                for metric in metrics or METRICS:
                    found = rates(metric, draws, seeds, items, noise)
                    cells.append(
                        f"{metric} {100 * found['items']:4.1f} ({100 * found['seeds']:4.1f})"
                    )
                print(f"{name:32} {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
