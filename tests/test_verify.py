"""From a stranger's folder to the tables and back: submit, report, verify."""

import json

import pytest

from bench.cli import main
from bench.core.store import Store, path_of
from bench.planning.job import Job
from bench.review import submissions
from tests.helpers import cell, run_cell
from tests.samples import record

CELL = cell("gmp", budget__steps=10)

MATRICES = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
"""(out, in) of one of MiniLM-L6's six blocks."""


@pytest.fixture(scope="module")
def sent():
    """What an honest stranger sends: the very cell that the project would run."""
    made = run_cell(CELL, lambda *_: None)
    return made.model_copy(update={"origin": "A stranger"})


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *arguments):
    code = main.main(list(arguments))
    return (code, *capsys.readouterr())


def filed(tree):
    return tree / "results" / "submissions" / "a-stranger" / path_of(CELL)


def test_a_submission_is_shown_unverified_until_its_cell_was_run(capsys, tree, sent):
    Store(tree / "sent").put(sent)
    code, out, _ = call(capsys, "submit", "sent")
    assert code == 0
    assert str(path_of(CELL)) in out
    assert json.loads(filed(tree).read_text())["origin"] == "A stranger"
    assert call(capsys, "report")[0] == 0
    assert "(unverified)" in (tree / "reports" / "other.md").read_text().replace("\\", "")
    code, out, _ = call(capsys, "verify", str(filed(tree)))
    assert code == 0, out
    assert "# Verification passed" in out
    own = Store(tree / "results" / "local").get(CELL)
    assert own.origin == "local"
    Store(tree / "results").put(own)  # what `publish` does with all seeds of a row
    assert call(capsys, "report")[0] == 0
    assert "(unverified)" not in (tree / "reports" / "other.md").read_text().replace("\\", "")
    records, problems = submissions.with_own(Store(tree / "results"))
    assert ([r.origin for r in records], problems) == (["local"], [])


def test_a_score_that_cannot_be_found_again_is_named(capsys, tree, sent):
    scores = sent.scores
    value = scores.value - 0.1  # ten points, as if items had not been kept
    lie = scores.model_copy(
        update={"value": value, "items": "", "all": scores.all | {"accuracy": value}}
    )
    Store(tree / "sent").put(sent.model_copy(update={"scores": lie}))
    assert call(capsys, "submit", "sent")[0] == 0
    code, out, _ = call(capsys, "verify", str(filed(tree)))
    assert code == 1
    assert "| accuracy |" in " ".join(out.split())
    own = Store(tree / "results" / "local").get(CELL)
    assert own.scores.value == pytest.approx(scores.value, abs=1e-6)


def test_nothing_is_filed_where_one_record_is_refused(capsys, tree, sent):
    params = sent.params.model_copy(update={"stored": 1})
    Store(tree / "sent").put(sent)
    other = sent.model_copy(
        update={"cell": (c := CELL.model_copy(update={"seed": 2})), "key": c.key, "params": params}
    )
    Store(tree / "sent").put(other)
    code, out, _ = call(capsys, "submit", "sent")
    assert code == 1
    assert "params.stored" in out.replace("\\", "")
    assert not (tree / "results").exists()


def test_the_projects_own_records_are_verified_too(capsys, tree, sent):
    published = Store(tree / "results")
    published.put(sent.model_copy(update={"origin": "local"}))
    path = str(published.path(CELL))
    code, out, _ = call(capsys, "verify", path)
    assert code == 0
    assert f"# Verification passed\n\n1 row of {path}: no change fails" in out.replace("\\", "")
    own = Store(tree / "results" / "local")
    code, _, err = call(capsys, "verify", path, str(own.path(CELL)))
    assert code == 2
    assert "seed1.json is what would be compared with it; --rerun runs its cell again" in err


def test_a_failed_record_is_not_verified(capsys, tree):
    (tree / "r.json").write_text(record(failed=True).to_json())
    code, _, err = call(capsys, "verify", "r.json")
    assert code == 2
    assert err.count("\n") == 1


def test_a_submission_that_claims_to_be_the_projects_is_left_out(tree, sent):
    place = filed(tree)
    submissions.accept([sent], tree / "results")
    for origin in ("local", "Somebody else"):
        place.write_text(sent.model_copy(update={"origin": origin}).to_json())
        records, problems = submissions.with_own(Store(tree / "results"))
        assert records == []
        assert origin in problems[0]


def minilm(**parts):
    """PST on MiniLM-L6 as methods/README.md counts it, 64 tokens; `parts` replace numbers."""
    made = record(0.85)
    weights = 6 * sum(o * i for o, i in MATRICES)
    attention = 6 * 2 * 64 * 64 * 384
    head = 384 * 384 + 384 * 2
    numbers = {
        "prunable": weights,
        "body": 6 * sum(17 * (o + i) for o, i in MATRICES),
        "head": 2 * 384 + 2,
        "macs": 64 * weights + attention + head,
    } | parts
    kept = numbers["prunable"] // 2
    params = made.params.model_copy(
        update={
            "total": 22_713_986,
            "prunable": numbers["prunable"],
            "nonzero": kept,
            "stored": 22_713_986 - numbers["prunable"] + kept,
            "trainable": made.params.trainable.model_copy(
                update={"body": numbers["body"], "head": numbers["head"]}
            ),
        }
    )
    macs = made.macs.model_copy(update={"dense": numbers["macs"], "effective": 10})
    versions = Job.resolve(made.cell).versions
    budget = Job.resolve(made.cell).budget
    scores = made.scores.model_copy(update={"all": {"accuracy": 0.85}})
    return made.model_copy(
        update={"params": params, "macs": macs, "versions": versions, "budget": budget,
                "scores": scores, "origin": "A stranger"}
    )  # fmt: skip


def test_counts_are_held_against_the_closed_forms():
    assert submissions.problems(minilm()) == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("body", "params.trainable.body"),
        ("head", "params.trainable.head"),
        ("prunable", "params.prunable"),
        ("macs", "macs.dense"),
    ],
)
def test_a_count_that_the_method_cannot_have_is_named(name, place):
    (line,) = submissions.problems(minilm(**{name: 2_000_000}))
    assert line.startswith(f"{place} is 2,000,000; pst on minilm-l6 has ")
