"""What a board's first sentences say is what its ranks say, and stands before everything else."""

import re

import numpy as np
import pytest

from bench.core.tables import escape
from bench.reporting import boards, findings, pages
from tests.samples import OLD, record, study

SEEDS = (1, 2, 3)


def rows(method, right, seeds=SEEDS, **more):
    """Records of a method that is right on the first `right` of 100 items, whatever the seed."""
    items = "1" * right + "0" * (100 - right)
    return [record(right / 100, method=method, seed=s, items=items, **more) for s in seeds]


def dense(right=90):
    return rows("dense", right, pattern="dense", sparsity=0.0)


def said(records):
    (board,) = boards.boards(records)
    return findings.sentences(board)


def test_one_row_that_all_others_are_worse_than():
    text = said([*rows("pst", 90), *rows("gmp", 50), *rows("random", 10)])[0]
    assert text.endswith("at 50 %, only pst of 3 (90.00).")


def test_rows_that_no_test_tells_apart_are_all_said_to_be_possible():
    text = said([*rows("pst", 90), *rows("gmp", 90), *rows("random", 10)])[0]
    assert re.search(r"(pst, gmp|gmp, pst) of 3 \(best mean: (pst|gmp), 90.00\)", text)
    text = said([*rows("pst", 61), *rows("gmp", 60)])[0]
    assert "all 2 (best mean: pst, 61.00)" in text


def test_without_enough_seeds_nothing_is_claimed():
    lines = said([*rows("pst", 90, seeds=(1, 2)), *rows("gmp", 10, seeds=(1, 2))])
    assert lines[0].startswith("Nothing is tested")
    assert "2 rows with fewer than 3 seeds" in lines[1]
    assert not re.search("pst|gmp|90", " ".join(lines))


def test_levels_stand_in_the_order_of_the_table():
    def at(level, *methods):
        found = [r for m in methods for r in rows(m, 90, sparsity=level)]
        zeros = found[0].sparsity.model_copy(update={"overall": level})
        return [r.model_copy(update={"sparsity": zeros}) for r in found]

    two = [r for level in (0.5, 0.7, 0.6, 0.95) for r in at(level, "pst", "gmp")]
    text = said([*at(0.9, "pst", "gmp", "l0"), *two])[0]
    assert re.findall(r"at (\d+) %", text) == ["50", "60", "70", "90"]
    assert text.endswith("the table has 1 more level.")


def test_a_row_that_is_alone_is_not_ranked():
    lines = said([*rows("pst", 90), *rows("gmp", 50), *rows("wanda", 50, pattern="2:4")])
    assert "1 row without another row of that level" in lines[-1]
    assert "2:4" not in lines[0]


def test_rows_from_elsewhere_are_not_ranked():
    theirs = [r.model_copy(update={"origin": "them"}) for r in rows("wanda", 99)]
    lines = said([*rows("pst", 90), *rows("gmp", 50), *theirs])
    assert "1 row that someone sent in, unverified" in lines[-1]
    assert "wanda" not in lines[0]


def test_perplexities_are_told_as_a_ratio():
    records = study("wikitext", "smollm2-135m-q4", falls=True)
    text = said(records)[1]
    (name, ratio) = re.search(
        r"at 50 %, (\w+) .*? has ([\d.]+) times the dense perplexity", text
    ).groups()
    means = {
        method: sum(
            r.scores.value
            for r in records
            if r.cell.method == method
            and r.cell.sparsity in (0.0, 0.5)
            and r.cell.pattern.text != "2:4"
        )
        for method in (name, "dense")
    }
    assert ratio == f"{means[name] / means['dense']:.3g}"
    assert "% of the dense score" not in text


def test_costs_are_of_one_machine_or_not_told():
    here = [*dense(), *rows("pst", 90), *rows("gmp", 50)]
    text = said(here)[1]
    assert "pst trains 30 elements, takes 10 s and keeps 100.0 % of the dense score" in text
    other = [r.model_copy(update={"env": {"gpu": "other"}}) if r.cell.method == "pst" else r
             for r in here]  # fmt: skip
    text = said(other)[1]
    assert "pst trains 30 elements and keeps 100.0 %" in text
    # The machine of a training in bf16 is another one than that of one in float32.
    fast = [r.model_copy(update={"env": r.env | {"train_dtype": "bf16-autocast"}})
            if r.cell.method == "pst" else r for r in here]  # fmt: skip
    assert "pst trains 30 elements and keeps 100.0 %" in said(fast)[1]


def test_rows_at_their_own_sparsity_are_counted():
    apart = [r.model_copy(update={"sparsity": r.sparsity.model_copy(update={"overall": 0.4})})
             for method in ("dsee", "l0") for r in rows(method, 80)]  # fmt: skip
    ranked = [*rows("pst", 90), *rows("gmp", 50)]
    assert "2 rows at a sparsity of their own" in said([*ranked, *apart])[-1]
    assert "1 row at a sparsity of its own" in said([*ranked, *apart[:3]])[-1]


def test_old_rows_are_counted():
    old = [r.model_copy(update={"versions": OLD}) for r in rows("pst", 90)]
    assert said([*old, *rows("gmp", 80), *rows("movement", 70)])[-1] == (
        "Not ranked: 1 row of an earlier version, to be run again."
    )


def test_old_rows_take_no_part_in_a_test():
    new = [*rows("gmp", 80), *rows("movement", 50)]
    old = [r.model_copy(update={"versions": OLD}) for r in rows("pst", 95)]
    (alone,), (beside,) = boards.boards(new), boards.boards([*new, *old])
    (before,), (after,) = alone.columns, beside.columns
    assert [key[0] for key, _ in after.rows] == ["pst", "gmp", "movement"]
    assert after.tests.places == [None, *before.tests.places]
    assert np.array_equal(after.tests.p[1:, 1:], before.tests.p, equal_nan=True)


@pytest.mark.parametrize("falls", [False, True])
def test_a_study_is_told_as_its_ranks_have_it(falls):
    records = study(falls=falls)
    (board,) = boards.boards(records)
    text = findings.sentences(board)[0]
    levels = {}
    headings = {key: column.heading for column in board.columns for key, _ in column.rows}
    for key, inside in board.rows:
        if board.ranks[key] != "–":
            mean = sum(r.scores.value for r in inside) / len(inside)
            first = re.match(r"\d+", board.ranks[key])[0]
            levels.setdefault(headings[key], []).append((mean, key[0], first == "1"))
    assert len(levels) == 3
    for level, found in levels.items():
        best = [name for _, name, first in found if first]
        top = (min if falls else max)(found)
        part = re.search(rf"at {level}, (.*?)(;|\.$)", text)[1]
        assert f" of {len(found)}" in part or part.startswith(f"all {len(found)} ")
        if len(best) > 1:
            assert f"(best mean: {top[1]}, " in part
        if 3 < len(best) < len(found):
            assert part.startswith(f"{len(best)} of ")
        elif len(best) < len(found):
            assert all(name in part for name in best)


def test_pages_open_with_the_findings(tmp_path):
    records = [*study(), *study("wikitext", "smollm2-135m-q4", falls=True)]
    pages.write_pages(records, [], tmp_path)
    html = (tmp_path / "index.html").read_text("utf-8")
    found = {board.group[0]: findings.sentences(board) for board in boards.boards(records)}
    for task, page in (("reviews", "quick.md"), ("wikitext", "other.md")):
        text = (tmp_path / page).read_text("utf-8")
        for line in found[task]:
            assert f"<p>{line}</p>" in html
            assert html.index(line) < html.index("<select") < html.index('<table id="rows"')
            assert text.index(f"* {escape(line)}\n") < text.index("| method")
