"""The main table says what the tests found: bold groups, collapsed runs, rows that stand apart."""

import re

import pytest

from bench.core.store import Store
from bench.core.tables import escape
from bench.reporting import axes, boards, main_table, pairs
from bench.reporting.front import front
from tests.samples import record

SEEDS = (1, 2, 3)
ITEMS = 1000


def rows(method, right, level=0.5, pattern="unstructured", zeros=None, **more):
    """Records that are right on the first `right` of 1,000 items, whatever the seed."""
    items = "1" * right + "0" * (ITEMS - right)
    made = [
        record(right / ITEMS, method=method, seed=s, items=items, pattern=pattern, sparsity=level)
        for s in SEEDS
    ]
    overall = level if zeros is None else zeros
    sparsity = made[0].sparsity.model_copy(update={"overall": overall})
    all_scores = {"accuracy": right / ITEMS, "majority": 0.5}
    found = []
    for r in made:
        scores = r.scores.model_copy(update={"n": ITEMS, "all": all_scores})
        found.append(r.model_copy(update={"sparsity": sparsity, "scores": scores} | more))
    return found


def dense(right=900):
    return rows("dense", right, level=0.0, pattern="dense")


def the_board(*parts):
    (board,) = boards.boards([r for part in parts for r in part])
    return board


def table_of(board):
    text = main_table.main_table(board, lambda text, _: text)
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()
             if line.startswith("|")]  # fmt: skip
    header, rest = cells[0], [row for row in cells[2:] if len(row) == len(cells[0])]
    return text, header, {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rest}


def test_bold_are_the_rows_that_no_row_of_their_column_is_better_than():
    board = the_board(
        dense(), rows("pst", 850), rows("gmp", 849), rows("wanda", 700),
        rows("pst", 600, 0.9), rows("gmp", 800, 0.9), rows("ast", 800, pattern="2:4"),
    )  # fmt: skip
    text, header, found = table_of(board)
    assert header == ["method", "dense", "50 %", "90 %", "2:4"]
    assert list(found) == ["dense", "pst", "gmp", "wanda", "ast"]
    bold = {(m, c) for m, row in found.items() for c, cell in row.items() if "**" in cell}
    assert bold == {("pst", "50 %"), ("gmp", "50 %"), ("gmp", "90 %")}
    assert found["wanda"]["90 %"] == ""
    assert "2 of 3 at 50 %; 1 of 1 at 90 %" in text
    # A row that is alone in its column is compared with nothing.
    assert found["ast"]["2:4"] == "80.0 ± 0.0°"


def test_a_row_at_another_sparsity_than_asked_for_stands_apart_and_is_not_tested():
    board = the_board(dense(), rows("pst", 850), rows("gmp", 700), rows("dsee", 880, zeros=0.417))
    text, _, found = table_of(board)
    assert "dsee" not in found
    assert re.search(r"dsee +\| unstructured 0.5 +\| +41.7 \| +88.0 ± 0.0", text)
    assert [key[0] for key, _ in board.columns[1].rows] == ["pst", "gmp"]
    assert board.ranks[next(k for k, _ in board.rows if k[0] == "dsee")] == "–"
    # One point is near enough.
    near = the_board(dense(), rows("pst", 850), rows("dsee", 880, zeros=0.492))
    assert "dsee" in table_of(near)[2]


def test_units_that_weigh_more_than_asked_for_stand_apart():
    right = rows("flap", 850, 0.2, "heads+neurons", zeros=0.2)
    board = the_board(dense(), right, rows("wanda-sp", 800, 0.2, "heads+neurons", zeros=0.233))
    text, _, found = table_of(board)
    assert "wanda-sp" not in found
    assert re.search(r"wanda-sp +\| heads\\\+neurons 0.2 +\| +23.3 \| +80.0 ± 0.0", text)


def test_columns_go_from_dense_over_weights_to_whole_units():
    levels = (("blocks", 0.1), ("2:4", 0.5), ("unstructured", 0.9), ("blocks", 0.3),
              ("heads+neurons", 0.2), ("unstructured", 0.5))  # fmt: skip
    made = [rows(f"m{i}", 800, level, pattern) for i, (pattern, level) in enumerate(levels)]
    found = [column.heading for column in the_board(dense(), *made).columns]
    units = ["blocks 10 %", "blocks 30 %", "heads+neurons 20 %"]
    assert found == ["dense", "50 %", "90 %", "2:4", *units]


def test_the_share_of_heads_is_no_share_of_weights():
    board = the_board(dense(), rows("dsee", 850, 0.25, "heads", zeros=0.083))
    assert "dsee" in table_of(board)[2]


def test_collapsed_runs_are_named():
    _, _, found = table_of(the_board(dense(), rows("pst", 850), rows("random", 505)))
    assert found["random"]["50 %"] == "50.5 ± 0.0, collapsed 3 of 3"


def test_each_row_shows_what_its_first_model_wrote():
    def writing(records, *texts):
        return [
            r.model_copy(update={"scores": r.scores.model_copy(update={"written": text})})
            for r, text in zip(records, texts, strict=True)
        ]

    board = the_board(
        writing(rows("pst", 850)[::-1], "third", "second", "The *Mill* | a pub."),
        writing(dense(), "A pub.", "-", "-"), rows("gmp", 700),
    )  # fmt: skip
    text = main_table.written_texts(board)
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines()[2:]]
    assert cells[2:] == [
        ["dense", escape("dense"), escape("A pub.")],
        ["pst", escape("unstructured 0.5"), escape("The *Mill* | a pub.")],
    ]
    assert main_table.written_texts(the_board(dense(), rows("pst", 850))) == ""


def test_unverified_rows_are_shown_and_not_tested():
    sent = rows("best", 990, origin="someone")
    text, _, found = table_of(the_board(dense(), rows("pst", 850), rows("gmp", 700), sent))
    assert found[escape("best (unverified)")]["50 %"].endswith("°")
    assert "**85.0" in found["pst"]["50 %"]
    assert "1 of 1 at 50 %" in text


def test_costs_are_relative_to_dense_on_one_machine_and_empty_columns_vanish():
    slow = [
        r.model_copy(update={"cost": r.cost.model_copy(update={"train_s": 30.0, "prune_s": 0.0,
                                                               "dense_s": 0.0})})
        for r in rows("pst", 850)
    ]  # fmt: skip
    base = [
        r.model_copy(update={"cost": r.cost.model_copy(update={"train_s": 20.0, "prune_s": 0.0,
                                                               "dense_s": 0.0})})
        for r in dense()
    ]  # fmt: skip
    text = main_table.cost_table(the_board(base, slow), lambda text, _: text)
    header, *lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert "tuning" not in header
    at = {name: i for i, name in enumerate(header)}
    found = {line[0]: line for line in lines[1:]}
    assert found["pst"][at["time × dense"]] == "1.50"
    assert found["pst"][at["at"]] == "50 %"
    other = [r.model_copy(update={"env": {"gpu": "other"}}) for r in slow]
    text = main_table.cost_table(the_board(base, other), lambda text, _: text)
    assert re.search(r"pst .*\| +– \|", text)


def test_a_dense_model_that_trains_nothing_leaves_seconds():
    def costing(records, prune_s):
        cost = {"train_s": 0.0, "prune_s": prune_s, "dense_s": 0.0}
        return [r.model_copy(update={"cost": r.cost.model_copy(update=cost)}) for r in records]

    board = the_board(costing(dense(), 2e-5), costing(rows("wanda", 850), 187.2))
    text = main_table.cost_table(board, lambda text, _: text)
    header, _, *lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()
    ]
    assert "time × dense" not in header
    assert {line[0]: line[header.index("time")] for line in lines} == {
        "dense": "0 s",
        "wanda": "187 s",
    }
    (cost, _) = axes.costs(board.dense)
    assert cost.unit == "s"
    assert [cost.of(row[1]) for row in board.rows] == [0.0, 187.2]


def test_the_compute_of_a_board_counts_dense_training_once():
    cost = {"train_s": 600.0, "prune_s": 0.0, "dense_s": 0.0, "eval_s": 20.0}
    base = [r.model_copy(update={"cost": r.cost.model_copy(update=cost)}) for r in dense()]
    cost |= {"train_s": 0.0, "prune_s": 10.0, "dense_s": 600.0}
    made = [r.model_copy(update={"cost": r.cost.model_copy(update=cost)}) for r in rows("pst", 850)]
    text = main_table.compute_note(the_board(base, made))
    assert text == "6 cells took 32 min, one at a time."  # 3 · 620 s + 3 · 30 s = 32.5 min


def test_pairs_hold_every_difference_once_with_its_interval():
    board = the_board(rows("pst", 850), rows("gmp", 849), rows("wanda", 700))
    text = pairs.pairs(board)
    assert "2 of 3 pairs are told apart" in text
    found = re.findall(r"(\*\*)?([+-][\d.]+) \(([+-][\d.]+) … ([+-][\d.]+)\)", text)
    assert len(found) == 3
    assert {mark for mark, *_ in found} == {"", "**"}
    for _, effect, low, high in found:
        assert float(low) <= float(effect) <= float(high)
    assert {effect for _, effect, *_ in found} == {"-0.1", "-15.0", "-14.9"}


@pytest.mark.parametrize("value", ["<b>x</b>", "a|b"])
def test_foreign_parameters_are_harmless(value):
    made = [record(0.8, seed=s, overrides=(("note", value),)) for s in SEEDS]
    text = main_table.main_table(the_board(dense(), made), lambda text, _: text)
    assert value not in text
    assert escape(value) in text


def test_the_front_page_links_to_records_and_methods(tmp_path):
    store = Store(tmp_path)
    for made in (*dense(), *rows("pst", 850)):
        store.put(made)
    text = front(store.records()[0])
    assert "[`pst`](methods/README.md#pst)" in text
    assert "[85.0 ± 0.0°](results/reviews/minilm-l6/pst/unstructured-0.50)" in text


def test_the_front_page_folds_all_tables_but_that_of_the_largest_board():
    other = {"task": "zero-shot", "model": "smollm2-135m-q4", "method": "wanda"}
    text = front([*dense(), *rows("pst", 850), *(record(0.4, seed=s, **other) for s in SEEDS)])
    assert text.count("| method") == 2
    first, folded = text.split("<details>")
    assert "`pst`" in first
    assert "`wanda`" in folded.partition("</details>")[0]
