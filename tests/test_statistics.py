import itertools

import numpy as np
import pytest
from scipy import stats as st

from bench.reporting import paired, statistics
from tests.benchmarks.simulate_statistics import NOISE, draw, ranks_of, rate
from tests.samples import record

QUIET, USUAL = NOISE["items and seeds × items"], NOISE["and a little of seeds"]


@pytest.mark.parametrize(
    ("seeds", "noise"), [(3, USUAL), (5, USUAL), (3, NOISE["seeds most of all"])]
)
def test_methods_that_differ_by_seed_only_are_rarely_told_apart(seeds, noise):
    # 5 % and two standard errors of 500 draws.
    assert rate(500, seeds, 500, noise) <= 0.07


def test_two_points_are_found_on_five_seeds_of_500_items():
    assert rate(300, 5, 500, QUIET, gain=0.02) >= 0.8


def test_equal_methods_may_have_any_rank():
    rng = np.random.default_rng(0)
    wrong = sum(set(ranks_of(draw(rng, 6, 3, 500, USUAL))) != {(1, 6)} for _ in range(400))
    assert st.binomtest(wrong, 400, 0.05, alternative="greater").pvalue > 0.01


def test_without_seed_noise_it_is_the_paired_t_test_over_items():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(2, 1, 400)), 3, axis=1)
    found, expected = statistics.pairwise(x), st.ttest_rel(x[0, 0], x[1, 0])
    assert found.p[0, 1] == pytest.approx(expected.pvalue, rel=0.01)
    low, high = expected.confidence_interval(0.95)
    assert 2 * found.half()[0, 1] == pytest.approx(high - low, rel=0.01)


def test_without_items_it_is_the_paired_t_test_over_seeds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 1))
    expected = st.ttest_rel(x[0, :, 0], x[1, :, 0]).pvalue
    assert statistics.pairwise(x).p[0, 1] == pytest.approx(expected, rel=0.01)


def test_unsteady_pairs_do_not_depend_on_the_column_they_stand_in():
    rng = np.random.default_rng(0)
    x = draw(rng, 5, 3, 300, USUAL)
    column = statistics.pairwise(x, np.zeros(5, dtype=bool))
    for a, b in ((0, 1), (3, 2), (4, 0)):
        alone = statistics.pairwise(x[[a, b]])
        assert column.p[a, b] == pytest.approx(alone.p[0, 1]) == column.p[b, a]
        assert column.difference[a, b] == pytest.approx(alone.difference[0, 1])
        assert column.half()[a, b] == pytest.approx(alone.half()[0, 1])


def test_the_expectation_over_the_variance_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    freedom, by_seed, by_item = 4.5, 0.7, 0.4
    u = rng.chisquare(freedom, 400_000)
    z = rng.standard_normal(400_000) * np.sqrt(by_seed * freedom / u + by_item)
    for difference in (0.5, 2.0, 4.0):
        found = statistics._p_values(
            *(np.array([[v]]) for v in (difference, by_seed, by_item, freedom))
        )
        assert found[0, 0] == pytest.approx((np.abs(z) > difference).mean(), rel=0.03)


@pytest.mark.parametrize("freedom", [3.0, 8.0, 40.0])
def test_the_prior_finds_the_variances_that_it_was_drawn_from(freedom):
    rng = np.random.default_rng(0)
    true = 2.5 * freedom / rng.chisquare(freedom, 20_000)
    level, found = statistics.prior(true * rng.chisquare(4, 20_000) / 4, 4)
    assert level == pytest.approx(2.5, rel=0.15)
    assert found == pytest.approx(freedom, rel=0.25)


def test_variances_that_differ_by_chance_alone_have_an_endless_prior():
    rng = np.random.default_rng(0)
    level, found = statistics.prior(2.5 * rng.chisquare(4, 20_000) / 4, 4)
    assert level == pytest.approx(2.5, rel=0.1)
    assert found > 50


def test_moderation_draws_pairs_together_and_leaves_unsteady_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 5))
    x[0] *= 100
    variance = (x[:, None] - x[None]).var(axis=2, ddof=1)
    found, freedom = statistics.moderated(variance, 5, np.arange(12) > 0)
    quiet, upper = np.ix_(range(1, 12), range(1, 12)), np.triu_indices(11, 1)
    assert found[quiet][upper].var() < variance[quiet][upper].var()
    assert (found[quiet][upper].argsort() == variance[quiet][upper].argsort()).all()
    assert freedom[quiet][upper] == pytest.approx(4 + 2.5)
    assert (found[0] == variance[0]).all()
    assert (freedom[0] == 4).all()


def test_pairs_that_differ_much_are_hardly_moderated():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 5)) * 100.0 ** np.arange(12)[:, None]
    variance = (x[:, None] - x[None]).var(axis=2, ddof=1)
    _, freedom = statistics.moderated(variance, 5, np.ones(12, dtype=bool))
    assert freedom.max() < 4.5


def test_steps_count_what_was_found_no_more():
    # Of independent rows the largest of 3 differences is below 2.39 with 5 % (Tukey's 3.314 / √2).
    p = np.ones((3, 3))
    p[0, 1] = p[1, 0] = 2 * st.norm.sf(3.314 / np.sqrt(2))
    found = statistics.adjusted(p)
    assert found[0, 1] == pytest.approx(0.05, abs=0.006)
    assert found[0, 2] == found[1, 2] == 1
    # The last pair is a test of its own, once the others are found.
    p = np.array([[1, 1e-9, 1e-9], [1e-9, 1, 0.04], [1e-9, 0.04, 1]])
    assert statistics.adjusted(p)[1, 2] == pytest.approx(0.04, abs=0.006)
    assert statistics.adjusted(p)[0, 1] < 0.001


def test_a_larger_p_is_never_adjusted_to_a_smaller_one():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(7, 7)) ** 4
    p = np.minimum(p, p.T)
    upper = np.triu_indices(7, 1)
    raw, found = p[upper], statistics.adjusted(p)[upper]
    assert (np.diff(found[np.argsort(raw)]) >= 0).all()
    assert (found >= raw).all()


def test_equal_methods_have_p_1_and_few_items_prove_little():
    x = np.ones((2, 3, 4))
    assert statistics.pairwise(x).p[0, 1] == 1
    x[1] = 0
    assert statistics.pairwise(x).p[0, 1] == 0.125


def test_holm_is_the_textbooks():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def ranks_from(means, told):
    p = np.ones((len(means), len(means)))  # adjusted
    for a, b in told:
        p[a, b] = p[b, a] = 1e-9
    return statistics.rank_ranges(np.array(means), p)


@pytest.mark.parametrize(
    ("told", "ranks"),
    [
        ([], [(1, 3)] * 3),
        ([(0, 1), (0, 2), (1, 2)], [(1, 1), (2, 2), (3, 3)]),
        ([(0, 1), (0, 2)], [(1, 1), (2, 3), (2, 3)]),
        ([(0, 2), (1, 2)], [(1, 2), (1, 2), (3, 3)]),
        ([(0, 2)], [(1, 2), (1, 3), (2, 3)]),  # the middle one is like both
    ],
)
def test_ranks_part_only_what_is_told_apart(told, ranks):
    assert ranks_from([3.0, 2.0, 1.0], told) == ranks


def ranked(found):
    column = paired.all_pairs(found)
    return column.places, column.basis


def rows(x, **cell):
    """Records of methods m0, m1, … from 0/1 outcomes (methods, seeds, items)."""
    return [
        [
            scored("".join("01"[int(v)] for v in items), method=f"m{m}", seed=s + 1, **cell)
            for s, items in enumerate(method)
        ]
        for m, method in enumerate(x)
    ]


def scored(items, value=None, n=None, metric=None, **cell):
    if value is None:
        value = items.count("1") / len(items) if isinstance(items, str) else float(np.mean(items))
    made = record(value, items=items, **cell)
    update = {"n": n or len(items) or 100} | ({"metric": metric} if metric else {})
    return made.model_copy(update={"scores": made.scores.model_copy(update=update)})


def test_accuracy_is_tested_over_its_items():
    found = rows(draw(np.random.default_rng(0), 2, 3, 400, USUAL, gain=0.1))
    test = paired.compare(*found)
    assert (test.seeds, test.items, test.ratio, test.reason) == (3, 400, False, "")
    assert test.low < test.effect < test.high
    assert test.p < 0.05
    assert ranked(found) == ([(1, 1), (2, 2)], "mean")


def test_perplexity_is_tested_by_its_ratio():
    rng = np.random.default_rng(0)
    nll = rng.normal(3, 0.5, 200) + rng.normal(0, 0.05, (2, 3, 200))
    nll[1] += 0.2
    found = [
        [
            lower(scored(list(items), float(np.exp(items.mean())), method=f"m{m}", seed=s))
            for s, items in enumerate(method)
        ]
        for m, method in enumerate(nll)
    ]
    test = paired.compare(*found)
    assert test.ratio
    assert test.low < np.exp(-0.2) < test.high
    assert ranked(found) == ([(1, 1), (2, 2)], "log")


def lower(made):
    scores = made.scores.model_copy(update={"higher_is_better": False, "metric": "perplexity"})
    return made.model_copy(update={"scores": scores})


def test_a_score_that_its_items_do_not_give_is_tested_over_seeds_alone():
    # Matthews with items that are right or wrong: their mean is another number.
    found = [
        [
            scored("10" * 50, value + s / 1000, metric="matthews", method=m, seed=s)
            for s in (1, 2, 3)
        ]
        for m, value in (("a", 0.3), ("b", 0.1))
    ]
    found[0][0] = scored("10" * 50, 0.31, metric="matthews", method="a", seed=1)
    test = paired.compare(*found)
    assert (test.items, test.seeds) == (0, 3)
    assert test.p < 0.05
    assert ranked(found)[1] == "seeds"


def test_seeds_that_move_nothing_are_no_evidence_without_items():
    found = [
        [scored("", v, method=m, seed=s) for s in (1, 2, 3)] for m, v in (("a", 0.9), ("b", 0.1))
    ]
    assert "no seed moves the scores" in paired.compare(*found).reason
    assert ranked(found)[0] == [(1, 2), (1, 2)]


OTHERWISE = "scored on other data or in other arithmetic"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 9}, "no seed in common"),
        ({"fingerprint": "other"}, OTHERWISE),
        ({"n": 7}, OTHERWISE),
        ({"eval_dtype": "bf16-autocast"}, OTHERWISE),
    ],
)
def test_only_the_same_items_scored_alike_under_the_same_seed_are_a_pair(change, reason):
    a, b = (
        scored("0101"),
        scored("0101", method="gmp", seed=change.get("seed", 1), n=change.get("n")),
    )
    if "eval_dtype" in change:
        b = b.model_copy(update={"env": b.env | change})
    if "fingerprint" in change:
        b = b.model_copy(update={"data": b.data.model_copy(update=change)})
    test = paired.compare([a], [b])
    assert test.reason == reason
    assert np.isnan(test.effect)


def test_two_seeds_are_not_tested():
    found = rows(draw(np.random.default_rng(0), 2, 2, 100, USUAL, gain=0.1))
    test = paired.compare(*found)
    assert test.reason == "2 of 3 seeds in common"
    assert np.isnan(test.p)
    assert not np.isnan(test.effect)
    assert ranked(found)[0] == [None, None]


def test_a_row_with_other_seeds_does_not_unrank_the_others():
    found = rows(draw(np.random.default_rng(0), 3, 5, 400, USUAL, gain=0.1))
    found[1] = found[1][:3]
    odd = [scored("01" * 200, method="odd", seed=s) for s in (7, 8, 9)]
    assert ranked([*found, odd])[0] == [(1, 1), (2, 3), (2, 3), None]
    assert ranked([odd])[0] == [None]


def test_ranges_of_ranks_hold_every_order_that_the_tests_allow():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = 4
        means = rng.permutation(n).astype(float)
        told = [(a, b) for a in range(n) for b in range(a) if rng.random() < 0.5]
        allowed = [
            order  # method → rank
            for order in itertools.permutations(range(1, n + 1))
            if all((order[a] < order[b]) == (means[a] > means[b]) for a, b in told)
        ]
        for method, (first, last) in enumerate(ranks_from(means, told)):
            assert first <= min(order[method] for order in allowed)
            assert last >= max(order[method] for order in allowed)
