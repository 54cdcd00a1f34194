import csv
from pathlib import Path

import pytest

from bench.api import BenchError
from bench.cli import main
from bench.core.pattern import UNSTRUCTURED
from bench.core.record_parts import Versions
from bench.core.store import Store
from bench.core.tuning import Choices
from bench.planning import registry
from bench.reporting.rows import ordered
from bench.review import paper_claims, published
from tests.samples import record

ROOT = Path(__file__).resolve().parents[1]


def claim(**fields):
    base = {"paper": "P", "statement": "s", "source": "x", "method": "pst", "models": ["bert-base"]}
    return paper_claims.Claim(**(base | fields))


def test_the_trained_shares_of_the_abstracts_are_reproduced_by_counting():
    found = {
        (c.paper, c.check, c.printed): paper_claims.findings(c, [])[0]
        for c in paper_claims.read_claims()
        if c.check in ("share", "below", "saved")
    }
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert found["PST", "share", "1.5"].here == "1.451"  # 1.4505 %
    assert found["DSEE", "share", "0.5"].here == "0.542"
    assert found["DSEE", "saved", "25"].here == "24.999"


def test_a_share_that_prints_otherwise_is_not_reproduced():
    (found,) = paper_claims.findings(claim(check="share", printed="1.4"), [])
    assert found.verdict == "not reproduced"


@pytest.mark.parametrize("wanted", [c for c in paper_claims.read_claims() if c.against])
def test_claims_of_scores_without_records_are_not_tested(wanted):
    assert {f.verdict for f in paper_claims.findings(wanted, [])} == {"not tested here"}


def cells(a, b, model="bert-base", budget="full", seeds=3, behind=0):
    """Records of pst and movement around two accuracies, one thousandth from seed to seed.

    Those of pst are `behind` versions old.
    """
    common = {"model": model, "budget": budget}
    made = [
        record(value + seed * weight / 1000, method=method, seed=seed, **common)
        for method, value, weight in (("pst", a, 1), ("movement", b, 2))
        for seed in range(1, seeds + 1)
    ]
    return [by_version(r, behind if r.cell.method == "pst" else 0) for r in made]


def by_version(made, behind):
    method, task = registry.method(made.cell.method), registry.task(made.cell.task)
    versions = Versions(method=method.version - behind, task=task.version)
    return made.model_copy(update={"versions": versions})


def verdict(records, **fields):
    base = {"check": "comparable", "against": "movement", "margin": 1.0}
    (found,) = paper_claims.findings(claim(**(base | fields)), records)
    return found.verdict


def test_comparable_needs_the_whole_interval_within_the_margin():
    assert verdict(cells(0.85, 0.85)) == "reproduced"
    assert verdict(cells(0.90, 0.85)) == "reproduced"
    assert verdict(cells(0.80, 0.85)) == "not reproduced"
    assert verdict(cells(0.838, 0.846)) == "undecided"


def test_better_needs_the_whole_interval_above():
    assert verdict(cells(0.90, 0.85), check="better", margin=0.0) == "reproduced"
    assert verdict(cells(0.80, 0.85), check="better", margin=0.0) == "not reproduced"
    assert verdict(cells(0.852, 0.85), check="better", margin=0.0) == "undecided"


def test_a_gap_is_a_number_within_an_interval():
    assert verdict(cells(0.80, 0.85), check="gap", printed="5.2") == "reproduced"
    assert verdict(cells(0.80, 0.85), check="gap", printed="9") == "not reproduced"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"model": "minilm-l6"}, "another model"), ({"budget": "default"}, "budget default")],
)
def test_an_order_on_another_model_or_budget_holds_or_fails_elsewhere(changes, why):
    for scores, said in (
        ((0.90, 0.85), "holds elsewhere"),
        ((0.80, 0.85), "fails elsewhere"),
        ((0.838, 0.846), "undecided elsewhere"),
    ):
        wanted = claim(check="comparable", against="movement", margin=1.0)
        (found,) = paper_claims.findings(wanted, cells(*scores, **changes))
        assert found.verdict == said
        assert why in found.where
    assert verdict(cells(0.80, 0.85, **changes), check="gap", printed="5.2") == "not tested here"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seeds": 2}, "2 of 3 seeds in common"),
        ({"behind": 1}, "records of an earlier version"),
        ({"behind": 1, "model": "minilm-l6"}, "records of an earlier version"),
    ],
)
def test_too_few_seeds_and_earlier_versions_decide_nothing(changes, why):
    wanted = claim(check="comparable", against="movement", margin=1.0)
    (found,) = paper_claims.findings(wanted, cells(0.9, 0.8, **changes))
    assert found.verdict == "not tested here"
    assert why in found.where


def test_the_published_rows_are_whole():
    rows = published.read_published()
    assert len(rows) == 258
    assert {r.confidence for r in rows} == {"H", "M", "L"}
    for row in rows:
        assert row.value > 0
        if row.metric not in ("perplexity", "trained share %", "inference FLOPs saved %"):
            assert row.value < 1, row
    with open(published.DATA, newline="") as file:
        assert len({tuple(r) for r in csv.reader(file)}) == len(rows) + 1
    # Spot checks against the papers' tables.
    values = {(r.label, r.model, r.task, r.sparsity, r.metric): r.value for r in rows}
    assert values["movement+KD", "bert-base", "glue/mnli", 0.9, "accuracy"] == 0.801
    assert values["soft movement+KD", "bert-base", "glue/qqp", 0.97, "f1"] == 0.855
    assert values["AST-Naive 2:4", "gpt2-medium", "wikitext-c4", 0.5, "perplexity"] == 23.65
    assert values["LoRA", "roberta-base", "glue/cola", 0.0, "matthews"] == 0.634
    assert values["OWL+Wanda", "llama-7b", "wikitext-c4", 0.7, "perplexity"] == 24.55


def mnli(value=0.80, method="movement", **cell):
    base = {"task": "glue/mnli", "model": "bert-base", "budget": "full", "sparsity": 0.9}
    return [
        with_all(record(value + s / 1000, method=method, seed=s, **(base | cell)))
        for s in (1, 2, 3)
    ]


def with_all(made):
    metrics = {"accuracy": made.scores.value}
    return made.model_copy(update={"scores": made.scores.model_copy(update={"all": metrics})})


def row(**fields):
    base = {
        "method": "movement", "label": "M", "model": "bert-base", "task": "glue/mnli",
        "pattern": "unstructured", "sparsity": 0.9, "metric": "accuracy", "value": 0.802,
        "recipe": "", "setting": "", "source": "s", "confidence": "H",
    }  # fmt: skip
    return published.PublishedNumber(**(base | fields))


def judged(printed, records):
    found = published.closest(printed, {"glue/mnli": ordered(records)})
    return published._finding(printed, found)


def test_a_published_number_is_reproduced_within_the_interval_of_the_same_cell():
    assert judged(row(), mnli()).verdict == "reproduced"
    assert judged(row(value=0.85), mnli()).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("printed", "cell", "why"),
    [
        ({}, {"model": "minilm-l6"}, "model minilm-l6"),
        ({}, {"budget": "default"}, "budget default"),
        ({}, {"overrides": (("lr", 1.0),)}, "lr=1"),
        ({"recipe": "distilled"}, {}, "paper: distilled"),
    ],
)
def test_a_cell_that_differs_decides_nothing(printed, cell, why):
    found = judged(row(**printed), mnli(**cell))
    assert found.verdict == "not tested here"
    assert why in found.where


def test_the_cell_of_that_level_that_differs_least_is_taken():
    others = [*mnli(sparsity=0.5), *mnli(pattern="2:4"), *mnli(method="pst")]
    assert published.closest(row(), {"glue/mnli": ordered(others)}) is None
    found = [*others, *mnli(budget="default", model="minilm-l6"), *mnli(model="roberta-base")]
    key, (first, *_) = published.closest(row(), {"glue/mnli": list(published._rows(found))})
    assert key[:3] == ("movement", UNSTRUCTURED, 0.9)
    assert first.cell.model == "roberta-base"


@pytest.mark.parametrize("text", ["", "[[claim]]\npaper = 1", "x ="])
def test_a_broken_data_file_is_one_line(tmp_path, text):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match="claims.toml"):
        paper_claims.read_claims(path)


def test_a_broken_row_is_named_by_its_line(tmp_path):
    path = tmp_path / "published.csv"
    lines = published.DATA.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace("0.845", "high")]))
    with pytest.raises(BenchError, match="line 4"):
        published.read_published(path)


def test_the_command_needs_no_record(capsys, tmp_path):
    assert main.main(["claims", "--results", str(tmp_path / "none")]) == 0
    page = capsys.readouterr().out
    assert "1.451" in page
    assert "258 published numbers have no cell here" in page


def test_the_committed_claims_are_those_of_the_committed_records():
    page = ROOT / "reports" / "claims.md"
    if not page.exists():
        pytest.skip("no claims are committed")
    records, _ = Store(ROOT / "results").records()
    text = paper_claims.claims_page(records, Choices(ROOT / "results")) + "\n"
    assert page.read_text(encoding="utf-8") == text, "make claims"
