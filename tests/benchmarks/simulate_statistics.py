"""How often the paired test of two methods is wrong and how often it finds.

    python -m tests.benchmarks.simulate_statistics

Outcomes of a classifier: an item is right where its easiness, what the method makes of it, the
luck of the seed and noise of both together exceed a threshold. Rates of this project's test and of
those that it was chosen over. `simulate_columns` does the same for whole columns.
"""

import sys

import numpy as np
from scipy import stats as st

from bench.reporting import statistics

# Standard deviations on the scale of the items' easiness: method × item, seed, seed × item.
NOISE = {
    "items and seeds × items": (0.0, 0.0, 0.2),
    "the same, more of it": (0.0, 0.0, 0.3),
    "and a little of seeds": (0.0, 0.03, 0.3),
    "and methods × items": (0.2, 0.03, 0.3),
    "seeds as much as items": (0.0, 0.1, 0.2),
    "seeds as much, methods × items": (0.2, 0.1, 0.3),
    "seeds most of all": (0.2, 0.3, 0.3),
    "no seed moves anything": (0.3, 0.0, 0.0),
}


def draw(rng, methods, seeds, items, noise, gain=0.0, accuracy=0.85):
    """0/1 outcomes (methods, seeds, items); the first method is better by `gain` on average."""
    by_item, by_seed, by_both = noise
    scale = np.sqrt(1 + by_item**2 + by_seed**2 + by_both**2)
    level = np.full((methods, 1, 1), st.norm.ppf(accuracy) * scale)
    level[0] = st.norm.ppf(accuracy + gain) * scale
    x = rng.standard_normal(items) + level
    x = x + by_item * rng.standard_normal((methods, 1, items))
    x = x + by_seed * rng.standard_normal((methods, seeds, 1))
    x = x + by_both * rng.standard_normal((methods, seeds, items))
    return (x > 0).astype(float)


def rate(draws, seeds, items, noise, gain=0.0, p_value=None, seed=0):
    """Share of draws of two methods that are told apart at 5 %."""
    rng = np.random.default_rng([seed, seeds, items])
    p_value = p_value or (lambda x, _: statistics.pairwise(x).p[0, 1])
    return np.mean(
        [p_value(draw(rng, 2, seeds, items, noise, gain), rng) < 0.05 for _ in range(draws)]
    )


def seeds_alone(x, _):
    """The t-test over seeds' mean differences."""
    return st.ttest_1samp((x[0] - x[1]).mean(1), 0).pvalue


def items_alone(x, _):
    """The t-test over items' differences, averaged over seeds."""
    return st.ttest_1samp((x[0] - x[1]).mean(0), 0).pvalue


def bootstrap(x, rng, samples=400):
    """Seeds drawn anew, then items within each; percentiles."""
    d = x[0] - x[1]
    seeds, items = d.shape
    chosen = rng.integers(0, seeds, (samples, seeds))
    # The sum of `items` draws from {−1, 0, 1}.
    shares = np.stack([(d == value).mean(1) for value in (-1, 0, 1)], axis=1)
    counts = rng.multinomial(items, shares[chosen])
    means = ((counts[..., 2] - counts[..., 0]) / items).mean(1)
    return 2 * min((means <= 0).mean(), (means >= 0).mean())


TESTS = {
    "this": None,
    "bootstrap": bootstrap,
    "items alone": items_alone,
    "seeds alone": seeds_alone,
}


def main(draws=2000, items=500):
    """Prints the tables."""
    for gain in (0.0, 0.02):
        for seeds in (3, 5):
            print(
                f"\ntold apart, methods {100 * gain:g} points apart, {seeds} seeds × {items} items"
            )
            for name, noise in NOISE.items():
                x = draw(np.random.default_rng(0), 200, seeds, items, noise)
                spread = 100 * x.mean(2).std(1, ddof=1).mean()
                changed = 100 * np.abs(x[:, 0] - x[:, 1]).mean()
                with np.errstate(all="ignore"):
                    rates = [
                        f"{test} {100 * rate(draws, seeds, items, noise, gain, p):5.1f} %"
                        for test, p in TESTS.items()
                    ]
                print(
                    f"{name:32} seeds' sd {spread:.1f} points, items that a seed changes "
                    f"{changed:4.1f} %: {', '.join(rates)}",
                    flush=True,
                )


def ranks_of(x):
    """The ranks that a column's methods may have."""
    p = statistics.adjusted(statistics.pairwise(x).p)
    return statistics.rank_ranges(x.mean(axis=(1, 2)), p)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
