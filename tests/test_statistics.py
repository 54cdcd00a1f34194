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


def test_pairs_do_not_depend_on_the_column_they_stand_in():
    rng = np.random.default_rng(0)
    x = draw(rng, 5, 3, 300, USUAL)
    column = statistics.pairwise(x)
    for a, b in ((0, 1), (3, 2), (4, 0)):
        alone = statistics.pairwise(x[[a, b]])
        assert column.p[a, b] == alone.p[0, 1] == column.p[b, a]
        assert column.difference[a, b] == pytest.approx(alone.difference[0, 1])
        assert column.half()[a, b] == pytest.approx(alone.half()[0, 1])


def test_equal_methods_have_p_1_and_few_items_prove_little():
    x = np.ones((2, 3, 4))
    assert statistics.pairwise(x).p[0, 1] == 1
    x[1] = 0
    assert statistics.pairwise(x).p[0, 1] == 0.125


def test_holm_is_the_textbooks():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def ranks_from(means, told):
    p = np.ones((len(means), len(means)))
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
    column = paired.test_column(found)
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 9}, "no seed in common"),
        ({"fingerprint": "other"}, "scored on other data"),
        ({"n": 7}, "scored on other data"),
    ],
)
def test_only_the_same_items_under_the_same_seed_are_a_pair(change, reason):
    a, b = (
        scored("0101"),
        scored("0101", method="gmp", seed=change.get("seed", 1), n=change.get("n")),
    )
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
