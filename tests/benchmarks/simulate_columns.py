"""How often a column's tests are wrong and how often they find, for twelve methods at once.

    python -m tests.benchmarks.simulate_columns [draws]

Scores in points, normal but where said: a row's seeds have a standard deviation of 0.8, its items
move its mean by 0.6, and seed × item by 0.5 more a seed. In the first column all rows are equal;
in the second they lie 0, 0, 0, 1, 1, 2, 2, 3, 5, 5, 30 and 30 points below the best. An error is
any pair of equals that is told apart.
"""

import sys

import numpy as np
from scipy import special

from bench.reporting import statistics

BELOW = np.array([0, 0, 0, 1, 1, 2, 2, 3, 5, 5, 30, 30.0])
GAPS = (1, 2, 5, 30)
ITEM, BOTH, ITEMS = 0.6, 0.5, 1500


def equal(rng, n, seeds):
    """Rows alike."""
    return 0.8 * rng.standard_normal((n, seeds))


def spread(rng, n, seeds):
    """Standard deviations whose logarithms scatter by 1."""
    return 0.8 * np.exp(rng.standard_normal((n, 1))) * rng.standard_normal((n, seeds))


def loud(sd):
    """Returns a mixture with one row of this standard deviation."""

    def draw(rng, n, seeds):
        x = equal(rng, n, seeds)
        x[rng.integers(n)] *= sd / 0.8
        return x

    return draw


def silent(rng, n, seeds):
    """A quarter of the rows is the same for every seed."""
    x = equal(rng, n, seeds)
    x[rng.choice(n, n // 4, replace=False)] = np.nan
    return x


def heavy(rng, n, seeds):
    """Seeds with Student's distribution, three degrees of freedom."""
    return 0.8 * rng.standard_t(3, (n, seeds)) / np.sqrt(3)


def loud_column(rng, n, seeds):
    """All rows ten times as loud."""
    return 10 * equal(rng, n, seeds)


def shared(rng, n, seeds):
    """A seed moves all rows by 3, and each of three families by 1.5."""
    families = 1.5 * rng.standard_normal((3, seeds))[np.arange(n) % 3]
    return 3 * rng.standard_normal(seeds) + families + 0.5 * rng.standard_normal((n, seeds))


def halves(rng, n, seeds):
    """Half of the rows has 0.3, the other half 2."""
    return np.where(np.arange(n) % 2, 0.3, 2.0)[:, None] * rng.standard_normal((n, seeds))


MIXTURES = {
    "rows alike": equal,
    "log-sd spread 1": spread,
    "one row of sd 6": loud(6.0),
    "one row of sd 16": loud(16.0),
    "silent rows": silent,
    "t₃ noise": heavy,
    "a loud column": loud_column,
    "shared seed effects": shared,
    "halves of 0.3 and 2": halves,
}


def column(rng, mixture, seeds, below):
    """Means over items, (methods, seeds), and the variance of a difference by items."""
    n = len(below)
    by_seed = MIXTURES[mixture](rng, n, seeds)
    still = np.isnan(by_seed).any(axis=1)
    noise = by_seed + BOTH * rng.standard_normal((n, seeds))
    noise[still] = 0.0
    return -below[:, None] + ITEM * rng.standard_normal((n, 1)) + noise, 2 * ITEM**2


def components(x, by_item, moderate):
    """Differences, s̃²/S, b and f of all pairs."""
    n, seeds = x.shape
    means = x.mean(axis=1)
    variance = (x[:, None] - x[None]).var(axis=2, ddof=1)
    freedom = np.full((n, n), seeds - 1.0)
    if moderate:
        variance, freedom = statistics.moderated(variance, seeds, np.ones(n, dtype=bool))
    return means[:, None] - means[None], variance / seeds, np.full((n, n), by_item), freedom


def howe(difference, by_seed, by_item, freedom):
    """The sum of squared half-widths: the level at which the interval leaves out 0."""
    low, high = np.full(difference.shape, 1e-12), np.ones(difference.shape)
    for _ in range(25):
        middle = np.sqrt(low * high)
        t, z = special.stdtrit(freedom, middle / 2), special.ndtri(middle / 2)
        covers = by_seed * t**2 + by_item * z**2 >= difference**2
        low, high = np.where(covers, middle, low), np.where(covers, high, middle)
    return high


def satterthwaite(difference, by_seed, by_item, freedom):
    """Student's with degrees of freedom of the sum of variances."""
    total = by_seed + by_item
    f = total**2 / (by_seed**2 / freedom + by_item**2 / (ITEMS - 1))
    return 2 * special.stdtr(f, -np.abs(difference) / np.sqrt(total))


def all_pairs_holm(p):
    """Holm over all pairs."""
    upper = np.triu_indices(len(p), 1)
    found = np.ones_like(p)
    found[upper] = statistics.holm(p[upper])
    return np.minimum(found, found.T)


def best_alone(p, difference):
    """Hsu's comparisons with the best: one-sided, over the other rows, for each row."""
    behind = np.where(difference < 0, p / 2, 1.0) * (len(p) - 1)
    return np.minimum(behind, behind.T)


TESTS = {
    "Holm over all pairs, Howe (before)": lambda *v: all_pairs_holm(howe(*v)),
    "steps, variances as they are": lambda *v: statistics.adjusted(statistics._p_values(*v)),
    "Holm, moderated": lambda *v: all_pairs_holm(statistics._p_values(*v)),
    "steps, moderated (this)": lambda *v: statistics.adjusted(statistics._p_values(*v)),
    "steps, moderated, Satterthwaite": lambda *v: statistics.adjusted(satterthwaite(*v)),
    "with the best (Hsu), moderated": lambda *v: best_alone(statistics._p_values(*v), v[0]),
}
MODERATED = [name for name in TESTS if "moderated" in name]


def study(mixture, seeds, draws):
    """Rates in %: {test: (errors among equals, errors in the second column, power by gap)}."""
    gaps = np.abs(BELOW[:, None] - BELOW[None])
    upper = np.triu(np.ones_like(gaps, dtype=bool), 1)
    rng = np.random.default_rng([seeds, list(MIXTURES).index(mixture)])
    errors, found = {name: np.zeros(2) for name in TESTS}, {name: np.zeros(4) for name in TESTS}
    for _ in range(draws):
        for which, below in enumerate((np.zeros_like(BELOW), BELOW)):
            x, by_item = column(rng, mixture, seeds, below)
            equals = upper & (gaps == 0) if which else upper
            for name, test in TESTS.items():
                told = test(*components(x, by_item, name in MODERATED)) < statistics.ALPHA
                errors[name][which] += told[equals].any()
                if which:
                    found[name] += [told[upper & (gaps == gap)].mean() for gap in GAPS]
    return {name: 100 * np.concatenate([errors[name], found[name]]) / draws for name in TESTS}


def errors(rows, mixture, seeds, draws):
    """Share in % of columns of so many equal rows in which this project's test errs."""
    rng = np.random.default_rng([rows, seeds, list(MIXTURES).index(mixture)])
    test, upper = TESTS["steps, moderated (this)"], np.triu_indices(rows, 1)
    columns = (column(rng, mixture, seeds, np.zeros(rows)) for _ in range(draws))
    told = [test(*components(*x, True))[upper] < statistics.ALPHA for x in columns]
    return 100 * np.any(told, axis=1).mean()


def main(draws=1000):
    """Prints a table for each number of seeds, then the errors of smaller columns."""
    np.seterr(all="ignore")
    for seeds in (3, 5):
        studies = {}
        for mixture in MIXTURES:
            studies[mixture] = study(mixture, seeds, draws)
            print(f"\n{seeds} seeds, {mixture}: errors (equal, unequal), found at {GAPS} points")
            for name, rates in studies[mixture].items():
                print(f"{name:36}" + "".join(f"{rate:6.1f}" for rate in rates), flush=True)
        print(f"\n| {seeds} seeds | errors, highest | " + " | ".join(f"{g} points" for g in GAPS))
        for name in TESTS:
            rates = np.array([studies[mixture][name] for mixture in MIXTURES])
            power = " | ".join(
                f"{low:.0f}–{high:.0f}"
                for low, high in zip(rates[:, 2:].min(0), rates[:, 2:].max(0), strict=True)
            )
            print(f"| {name} | {rates[:, :2].max():.1f} % | {power} |")

    for rows in (3, 4, 6):
        for seeds in (3, 5):
            rates = (f"{name} {errors(rows, name, seeds, draws):.1f}" for name in MIXTURES)
            print(f"{rows} equal rows, {seeds} seeds, errors: {'; '.join(rates)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
