import itertools

import pytest

from bench.core.record import PUBLISHED
from bench.core.record_parts import Speed
from bench.core.tables import escape, human, markdown, percent, plain
from bench.reporting import leaderboard, pages
from bench.reporting.rows import stale_note
from tests.samples import OLD, record


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1538, "1.538k"),
        (22_713_986, "22.71M"),
        (11.174e9, "11.17G"),
        (None, "–"),
    ],
)
def test_human_numbers(value, text):
    assert human(value) == text


def test_percent():
    assert percent(0.8512) == "85.12"
    assert percent(None) == "–"


@pytest.mark.parametrize(
    "hostile",
    ["a|b", "<img src=x>", "[x](javascript:1)", "`code`", "line\nbreak", "**bold**", "a\\|b"],
)
def test_markdown_cells_are_escaped(hostile):
    row = markdown(("method",), [[escape(hostile)]]).splitlines()[-1]
    assert row.count("|") - row.count("\\|") == 2
    assert "<" not in row
    assert "](" not in row.replace("\\](", "").replace("\\]\\(", "")


def test_terminal_tables_hold_no_control_characters():
    assert "\x1b" not in plain(("method",), [["\x1b[31mred"]])


def rows(records):
    lines = leaderboard.table(records).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    return [line.split() for line in itertools.takewhile(bool, lines[start + 1 :])]


def dense(value, seed=1):
    return record(value, method="dense", pattern="dense", sparsity=0.0, seed=seed)


def test_recovery_is_over_the_same_seeds():
    records = [
        dense(0.8),
        dense(0.9, seed=2),
        record(0.4),
        record(0.6, seed=2),
        record(0.7, seed=3),
    ]
    found = {row[0]: row for row in rows(records[:4])}
    assert found["pst"][4:9] == ["2", "50.00", "±", "14.14", "58.8"]
    # Seed 3 has no dense record: no recovery rather than one over other seeds.
    found = {row[0]: row for row in rows(records)}
    assert found["pst"][8] == "–"


def test_different_budgets_are_different_tables():
    other = record(0.4, overrides=(("budget.steps", 10),))
    text = leaderboard.table([dense(0.8), record(0.4), other])
    assert text.count("reviews · minilm-l6 · accuracy") == 2


def test_a_changed_parameter_is_a_row_of_its_own():
    found = rows([dense(0.8), record(0.4), record(0.5, overrides=(("lr", 0.001),))])
    assert ["pst", "lr=0.001"] in [row[:2] for row in found]


def test_pages_are_deterministic_and_name_what_was_left_out(tmp_path):
    records = [dense(0.8), record(0.4)]
    for name in ("a", "b"):
        pages.write_pages(records, ["x.json: corrupt | record"], tmp_path / name)
    texts = [{p.name: p.read_text() for p in (tmp_path / n).rglob("*.*")} for n in "ab"]
    assert texts[0] == texts[1]
    curves = {"quick.reviews.minilm-l6.svg", "quick.reviews.minilm-l6.dark.svg"}
    tables = {"quick.md", "quick.rows.md", "quick.pairs.md"}
    assert set(texts[0]) == {"README.md", *tables, "index.html", *curves}
    assert "x.json: corrupt \\| record" in texts[0]["README.md"]


def test_a_subset_is_marked():
    marked = record(0.4)
    marked = marked.model_copy(
        update={"data": marked.data.model_copy(update={"subset": "train 2 of 9 rows"})}
    )
    assert "SUBSET of the official data: train 2 of 9 rows" in leaderboard.table([marked])


def perplexity(value, **more):
    made = record(value, **more)
    scores = made.scores.model_copy(update={"metric": "perplexity", "higher_is_better": False})
    return made.model_copy(update={"scores": scores})


def test_where_lower_is_better_scores_recovery_and_order_are_turned():
    base = {"method": "dense", "pattern": "dense", "sparsity": 0.0}
    records = [
        perplexity(20.0, **base),
        perplexity(24.0, seed=2, **base),
        perplexity(80.0, method="magnitude"),
        perplexity(96.0, method="magnitude", seed=2),
        perplexity(25.0),
        perplexity(30.0, seed=2),
    ]
    assert "perplexity (lower is better)" in leaderboard.table(records)
    found = rows(records)
    assert [row[0] for row in found] == ["dense", "pst", "magnitude"]
    assert found[0][3:8] == ["2", "22.00", "±", "2.83", "100.0"]
    assert found[1][4:9] == ["2", "27.50", "±", "3.54", "80.0"]  # 44 / 55
    assert found[2][4:9] == ["2", "88.00", "±", "11.31", "25.0"]  # 44 / 176
    assert rows(records[2:])[0][8] == "–"


def test_where_higher_is_better_the_best_comes_first():
    found = rows([record(0.4), record(0.6, method="magnitude"), dense(0.8)])
    assert [row[0] for row in found] == ["dense", "magnitude", "pst"]


def scored(value, **metrics):
    made = record(0.5, method=value)
    return made.model_copy(update={"scores": made.scores.model_copy(update={"all": metrics})})


def test_every_metric_has_a_column_where_there_are_several():
    assert "every score" not in leaderboard.table([scored("pst", bleu=0.5)])
    page = leaderboard.table([scored("pst", bleu=0.5, nist=8.25), scored("gmp", bleu=0.25)])
    _, _, lines = page.partition("every score\n\n")
    cells = [line.split() for line in lines.splitlines()]
    assert cells[0] == ["method", "pattern", "quantized", "bleu", "nist"]
    assert ["pst", "unstructured", "0.5", "–", "0.5000", "8.2500"] in cells
    assert ["gmp", "unstructured", "0.5", "–", "0.2500", "–"] in cells


def test_the_arithmetic_of_scoring_is_named_where_it_is_not_float32():
    made = record(0.5).model_copy(update={"env": {"eval_dtype": "bf16-autocast"}})
    assert "scored in bf16-autocast" in leaderboard.table([made])
    assert "scored in" not in leaderboard.table([record(0.5)])


def test_the_mean_over_tasks_is_stated_where_it_is_complete():
    tasks = ("glue/a", "glue/b")
    both = [record(0.5, task="glue/a"), record(0.25, task="glue/b")]
    only = [record(0.5, task="glue/a", sparsity=0.9)]
    text = leaderboard.table([*both, *only], average=tasks)
    table = text[text.index("mean of 2 tasks · minilm-l6 · budget default") :].splitlines()
    assert table[4].split() == ["pst", "unstructured", "0.5", "–", "50.00", "25.00", "37.50"]
    assert table[5].split() == ["pst", "unstructured", "0.9", "–", "50.00", "–", "–"]


def test_the_mean_over_tasks_needs_equal_seeds():
    tasks = ("glue/a", "glue/b")
    found = [record(0.5, task="glue/a"), record(0.25, task="glue/b", seed=2)]
    assert leaderboard.table(found, average=tasks).splitlines()[-1].endswith("–")
    assert "mean of" not in leaderboard.table(found)


def timed(hardware, p50, dense_p50, form="sliced", **cell):
    """A record with a measured latency on a machine."""
    speed = Speed(
        hardware=hardware, dtype="float32", form=form, batch=1, length=128,
        ms_p50=p50, ms_p95=p50, dense_ms_p50=dense_p50,
    )  # fmt: skip
    env = {"cpu": hardware, "threads": 2}
    return record(0.5, **cell).model_copy(update={"speed": [speed], "env": env})


def test_times_of_different_machines_never_share_a_table():
    found = [timed("A", 10.0, 15.0), timed("B", 4.0, 8.0, seed=2)]
    parts = leaderboard.table(found).split("costs on ")[1:]
    assert [part.splitlines()[0] for part in parts] == ["A, 2 threads", "B, 2 threads"]
    first, second = (part.split("\n\n")[1].splitlines()[-1].split() for part in parts)
    assert first[first.index("10.0") + 1 :][:2] == ["1.50", "(sliced)"]
    assert second[second.index("4.0") + 1 :][:2] == ["2.00", "(sliced)"]


def test_a_latency_that_some_seeds_lack_is_not_averaged():
    lacking = timed("A", 3.0, 3.0, seed=2).model_copy(update={"speed": []})
    text = leaderboard.table([timed("A", 10.0, 15.0), lacking])
    assert "ms 1×128 float32" in text
    assert "1.50" not in text


def seeded(methods, seeds=3, **cell):
    """Records of methods whose seeds move little and whose levels are far apart."""
    return [
        record(value + seed / 1000, method=m, seed=seed, **cell)
        for m, value in methods.items()
        for seed in range(1, seeds + 1)
    ]


def rank_of(row):
    return row[-6]


def ranks(records):
    return {row[0]: rank_of(row) for row in rows(records)}


def test_ranks_need_three_seeds_and_another_method():
    assert ranks(seeded({"pst": 0.5, "gmp": 0.9}, seeds=2)) == {"pst": "–", "gmp": "–"}
    assert ranks(seeded({"pst": 0.5})) == {"pst": "–"}


def test_ranks_are_among_equals_in_level_and_shared_where_no_test_tells():
    noise = {"gmp": (0.9, 1, 3, 2), "pst": (0.5, 4, 1, 2), "wanda": (0.501, 1, 5, 3)}
    found = [
        record(value + by_seed[s - 1] / 1000, method=m, seed=s)
        for m, (value, *by_seed) in noise.items()
        for s in (1, 2, 3)
    ]
    assert ranks(found) == {"gmp": "1†", "pst": "2–3†", "wanda": "2–3†"}
    assert ranks([*found, *seeded({"ast": 0.7}, pattern="2:4")])["gmp"] == "1†"


def test_a_submission_is_marked_and_has_no_rank():
    sent = [
        r.model_copy(update={"origin": "someone"}) for r in seeded({"pst": 0.99, "best": 0.999})
    ]
    found = [*seeded({"gmp": 0.9, "wanda": 0.5}), *sent]
    marked = rows(found)
    assert [row[:2] for row in marked if row[1] == "(unverified)"] == [
        ["best", "(unverified)"],
        ["pst", "(unverified)"],
    ]
    assert all(rank_of(row) == "–" for row in marked if row[1] == "(unverified)")
    mixed = [*seeded({"pst": 0.5}), *sent]
    assert sum(row[0] == "pst" for row in rows(mixed)) == 2


def test_scores_link_to_their_records(tmp_path):
    pages.write_pages([dense(0.8)], [], tmp_path / "reports", tmp_path / "results")
    page = (tmp_path / "reports" / "quick.md").read_text()
    assert "[80.0°](../results/reviews/minilm-l6/dense/dense-0.00)" in page
    assert "](" not in leaderboard.table([dense(0.8)])


def test_rows_of_an_earlier_version_are_named():
    old, new = record(method="pst"), record(method="gmp")
    old = old.model_copy(update={"versions": OLD})
    told = "Of an earlier version of the code, to be run again:"
    assert stale_note([old, new]) == [f"{told} pst."]
    assert stale_note([old]) == [f"{told} all rows."]
    published = old.model_copy(update={"origin": PUBLISHED})
    assert stale_note([new, published]) == [f"{told} all published rows."]
    assert stale_note([new]) == []
    assert stale_note([record(method="of-another-package")]) == []
