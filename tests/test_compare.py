import itertools
import math

import numpy as np
import pytest

from bench.cli import main
from bench.core.record_parts import Speed
from bench.core.store import Store
from bench.reporting import boards, compare, paired
from tests.benchmarks.simulate_statistics import NOISE, draw
from tests.test_statistics import lower, rows, scored

QUIET = NOISE["items and seeds × items"]


def pair(gain=0.0, seeds=3, **cell):
    """Records of m0 (better by `gain`) and m1."""
    return rows(draw(np.random.default_rng(0), 2, seeds, 400, QUIET, gain), **cell)


def flat(found):
    return [record for row in found for record in row]


def test_the_better_one_is_named_with_its_interval():
    page = compare.report(flat(pair(gain=0.1)), "m0", "m1")
    assert "* m0 is better in 1 of 1 tested: reviews minilm-l6 unstructured 0.5." in page
    assert "* m1 is better in 0 of 1 tested." in page
    (line,), missing = compare.lines(flat(pair(gain=0.1)), "m0", "m1")
    assert line.winner == 0
    assert missing == {}
    (line,), _ = compare.lines(flat(pair(gain=0.1)), "m1", "m0")
    assert line.winner == 1


def test_lower_is_better_for_perplexity():
    rng = np.random.default_rng(0)
    found = []
    for method, shift in (("m0", 0.3), ("m1", 0.0)):
        for seed in (1, 2, 3):
            items = rng.normal(3 + shift, 0.1, 100)
            made = scored(list(items), float(np.exp(items.mean())), method=method, seed=seed)
            found.append(lower(made))
    (line,), _ = compare.lines(found, "m0", "m1")
    assert line.test.ratio
    assert line.test.effect > 1
    assert line.winner == 1


def test_a_comparison_has_the_interval_of_its_board():
    drawn = draw(np.random.default_rng(0), 6, 3, 400, NOISE["seeds most of all"])
    found = flat(rows(drawn))
    (board,) = boards.boards(found)
    (column,) = board.columns
    names = [records[0].cell.method for _, records in column.rows]
    for a, b in itertools.permutations(range(6), 2):
        (line,), _ = compare.lines(found, names[a], names[b])
        ends = column.tests.low[a, b], column.tests.high[a, b]
        assert (line.test.low, line.test.high) == pytest.approx(ends)


def test_no_variance_is_lent_by_rows_outside_the_column_or_without_the_seeds():
    drawn = draw(np.random.default_rng(0), 6, 3, 400, NOISE["seeds most of all"])
    a, b, *others = rows(drawn)
    alone = paired.compare(a, b)
    (among,), _ = compare.lines(flat([a, b, *others]), "m0", "m1")
    assert among.test.p != pytest.approx(alone.p)
    apart = [[with_zeros(r, 0.25) for r in row] for row in others]
    other_seeds = [row[:2] for row in others]
    for changed in (apart, other_seeds):
        (line,), _ = compare.lines(flat([a, b, *changed]), "m0", "m1")
        assert line.test == alone


def test_rows_of_another_size_are_shown_and_not_tested():
    a, b = pair(gain=0.1)
    (line,), _ = compare.lines([*(with_zeros(r, 0.4) for r in a), *b], "m0", "m1")
    assert (line.winner, line.test.reason) == (None, "another sparsity than asked for")
    assert np.isnan(line.p)
    assert "not tested: another sparsity" in compare.report(
        [*(with_zeros(r, 0.4) for r in a), *b], "m0", "m1"
    )


def with_zeros(made, zeros):
    sparsity = made.sparsity.model_copy(update={"overall": zeros})
    return made.model_copy(update={"sparsity": sparsity})


def test_below_three_seeds_nothing_is_claimed():
    page = compare.report(flat(pair(gain=0.1, seeds=2)), "m0", "m1")
    assert "1 not tested (2 of 3 seeds in common): no claim is made of these" in page
    assert "is better in" not in page
    assert "could not be told apart" not in page
    assert "not tested: 2 of 3 seeds in common" in page


def test_tests_are_adjusted_over_the_table():
    one = flat(pair(gain=0.06))
    (alone,), _ = compare.lines(one, "m0", "m1")
    more = [r for s in (0.6, 0.7, 0.8) for r in flat(pair(sparsity=s))]
    among = compare.lines([*one, *more], "m0", "m1")[0][0]
    assert among.test.p == alone.test.p == alone.p
    assert among.p == pytest.approx(4 * alone.p)


def test_what_one_of_them_lacks_is_named():
    found = [*flat(pair()), *pair(sparsity=0.9)[1]]
    page = compare.report(found, "m0", "m1")
    assert "* reviews minilm-l6 unstructured 0.9: no m0" in page
    assert "1 comparison of a = m0 and b = m1; 1 more cell that only one of them has" in page


def test_the_dense_reference_stands_against_every_level():
    dense = [
        scored("01" * 200, method="dense", pattern="dense", sparsity=0.0, seed=s) for s in (1, 2, 3)
    ]
    found = [*pair()[0], *pair(sparsity=0.9)[0], *dense]
    made, missing = compare.lines(found, "m0", "dense")
    assert [line.point[4] for line in made] == [0.5, 0.9]
    assert missing == {}


def test_only_common_seeds_are_shown():
    a, b = pair(seeds=5)
    (line,), _ = compare.lines([*a, *b[:4]], "m0", "m1")
    assert len(line.a) == len(line.b) == line.test.seeds == 4


def timed(made, hardware, ms):
    speed = Speed(
        hardware=hardware, dtype="float32", form="dense", batch=1, length=64,
        ms_p50=ms, ms_p95=ms, dense_ms_p50=10.0,
    )  # fmt: skip
    return made.model_copy(update={"speed": [speed], "env": {"gpu": hardware}})


def test_times_are_compared_on_one_machine_only():
    a, b = pair()
    same = [*(timed(r, "A", 4.0) for r in a), *(timed(r, "A", 8.0) for r in b)]
    assert "1×64: 0.50" in compare.report(same, "m0", "m1")
    apart = [*(timed(r, "A", 4.0) for r in a), *(timed(r, "B", 8.0) for r in b)]
    page = compare.report(apart, "m0", "m1")
    assert page.count("other hardware") == 2
    assert "0.50" not in page


def test_a_ratio_to_nothing_is_both_numbers():
    assert compare._ratio([30.0], [0.0]) == "30 : 0"
    assert compare._ratio([30.0], [None]) == "–"
    assert compare._ratio([1.0, 3.0], [4.0, 4.0]) == "0.5"


def test_foreign_text_is_escaped():
    a, b = pair()
    hostile = [
        r.model_copy(update={"scores": r.scores.model_copy(update={"metric": "<b>|x"})}) for r in a
    ]
    page = compare.report([*hostile, *b], "m0", "m1")
    assert "<b>" not in page
    assert "&lt;b&gt;\\|x" in page


def run(capsys, *arguments):
    code = main.main(["compare", *arguments])
    return (code, *capsys.readouterr())


def test_the_command(capsys, tmp_path):
    store = Store(tmp_path / "r")
    for made in flat(pair(gain=0.1)):
        store.put(made)
    folder = ("--results", str(tmp_path / "r"))
    code, out, _ = run(capsys, "m0", "m1", *folder)
    assert code == 0
    assert out.startswith("# m0 against m1\n")
    page = tmp_path / "p" / "x.md"
    assert run(capsys, "m0", "m1", *folder, "--task", "reviews", "--out", str(page))[0] == 0
    assert page.read_text() == out
    for arguments, line in (
        (("m0", "m3"), "no records of 'm3': there are m0, m1"),
        (("m0", "m0"), "compared with itself"),
        (("m0", "m1", "--task", "x"), "no records of task 'x': reviews"),
    ):
        code, out, err = run(capsys, *arguments, *folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert line in err
    assert run(capsys, "m0", "m1", "--results", str(tmp_path / "none"))[0] == 2


def test_adjusted_p_values_are_only_of_what_was_tested():
    found = [*flat(pair(gain=0.06)), *flat(pair(seeds=2, sparsity=0.9))]
    tested, untested = compare.lines(found, "m0", "m1")[0]
    assert tested.p == tested.test.p
    assert math.isnan(untested.p)
    assert untested.winner is None
