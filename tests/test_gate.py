"""Planted changes: what a bug in the engine would leave in the records must fail the gate."""

import dataclasses
import json

import pytest

from bench.cli import main
from bench.core.store import Store
from bench.review import gate
from tests.samples import record

SCORES = {1: 0.85, 2: 0.86, 3: 0.845}
CHANCE = 0.5


def tree(scores=SCORES, **parts):
    """Three seeds of two rows; `parts` change the first row's records."""
    changed = [patched(record(value, seed=seed), **parts) for seed, value in scores.items()]
    others = [record(v - 0.1, method="gmp", seed=s) for s, v in SCORES.items()]
    return [*changed, *others]


def patched(made, **parts):
    return made.model_copy(
        update={k: getattr(made, k).model_copy(update=v) for k, v in parts.items()}
    )


def moved(new, old=None):
    return gate.changes(gate.rows_of(old or tree()), gate.rows_of(new))


def test_equal_records_pass():
    assert moved(tree()) == []
    assert "passed" in gate.verdict_text([], 2, "x.json")


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        # One weight too many survives the top-k.
        (
            {"params.nonzero", "params.stored", "sparsity.overall"},
            {"params": {"nonzero": 401, "stored": 601}, "sparsity": {"overall": 0.49875}},
        ),
        # The mask is not applied when the model is exported.
        (
            {"params.nonzero", "params.stored", "sparsity.overall", "sparsity.min_layer",
             "sparsity.max_layer", "macs.effective"},
            {"params": {"nonzero": 800, "stored": 1000},
             "sparsity": {"overall": 0.0, "min_layer": 0.0, "max_layer": 0.0},
             "macs": {"effective": 10_000}},
        ),
        ({"macs.head"}, {"macs": {"head": 20}}),
        ({"macs.realizable"}, {"macs": {"realizable": 5_000}}),
        ({"sparsity.pattern_ok"}, {"sparsity": {"pattern_ok": False}}),
        ({"bytes.dense"}, {"bytes": {"dense": 4004}}),
        ({"bytes.formats.csr"}, {"bytes": {"formats": {"csr": 7}}}),
        ({"data.fingerprint"}, {"data": {"fingerprint": "g"}}),
        ({"versions.method"}, {"versions": {"method": 2}}),
    ],
)  # fmt: skip
def test_a_count_that_moves_fails(what, parts):
    found = moved(tree(**parts))
    assert {change.what for change in found} == what
    assert all(change.fails and "/pst/" in change.row for change in found)


def test_another_budget_fails():
    new = [
        r.model_copy(update={"budget": dataclasses.replace(r.budget, steps=299)}) for r in tree()
    ]
    assert {c.what for c in moved(new)} == {"budget.steps"}


def test_the_head_counted_among_the_body_fails():
    new = [
        r.model_copy(update={"params": r.params.model_copy(
            update={"trainable": r.params.trainable.model_copy(update={"body": 32, "head": 0})}
        )})
        for r in tree()[:3]
    ]  # fmt: skip
    found = moved([*new, *tree()[3:]])
    assert {c.what for c in found} == {"params.trainable.body", "params.trainable.head"}


def test_a_learning_rate_of_zero_shows_as_a_score_at_chance():
    (change,) = moved(tree(dict.fromkeys(SCORES, CHANCE)))
    assert (change.what, change.fails, change.now) == ("accuracy", True, "0.5000")


def test_a_score_that_rises_beyond_the_spread_fails_too():
    (change,) = moved(tree(dict.fromkeys(SCORES, 1.0)))
    assert change.what == "accuracy"


def test_a_score_may_move_as_far_as_another_seed_would():
    assert moved(tree({1: 0.86, 2: 0.845, 3: 0.85})) == []
    assert moved(tree({s: v - 0.01 for s, v in SCORES.items()})) == []


def test_one_seed_may_move_by_one_item():
    old = [record(0.85)]
    assert moved([record(0.86)], old) == []
    assert [c.what for c in moved([record(0.83)], old)] == ["accuracy"]


def test_a_count_that_training_decides_is_held_to_its_spread():
    counts = {1: 400, 2: 410, 3: 395}

    def with_counts(shift):
        return [patched(r, params={"nonzero": counts[r.cell.seed] + shift}) for r in tree()[:3]]

    assert moved(with_counts(5), with_counts(0)) == []
    assert [c.what for c in moved(with_counts(300), with_counts(0))] == ["params.nonzero"]


def test_what_is_missing_fails_and_what_is_new_is_named():
    found = moved([*tree()[:2], record(method="wanda")])
    named = {(c.row.split("/")[2], c.what, c.now, c.fails) for c in found}
    assert named == {
        ("pst", "seeds 3", "missing", True),
        ("gmp", "row", "missing", True),
        ("wanda", "row", "new", False),
    }
    assert moved([*tree(), record(seed=4)])[0].fails is False


def put(folder, records):
    store = Store(folder)
    for made in records:
        store.put(made)
    return str(folder)


def run(capsys, *arguments):
    code = main.main(["check", *arguments])
    return (code, *capsys.readouterr())


def test_update_then_check_then_a_planted_change(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, baseline = put(tmp_path / "r", tree()), "b/tiny.json"
    flags = ("--results", results, "--baseline", baseline)
    assert run(capsys, *flags)[0] == 2
    code, out, _ = run(capsys, *flags, "--update")
    assert code == 0
    assert '+   "metric": "accuracy",' in out
    code, out, _ = run(capsys, *flags)
    assert (code, out) == (
        0,
        f"# Gate passed\n\n2 rows of {baseline}: no change fails.\n",
    )
    assert "as it was" in run(capsys, *flags, "--update")[1]
    put(tmp_path / "r", tree(params={"nonzero": 401})[:3])
    code, out, _ = run(capsys, *flags, "--out", str(tmp_path / "gate.md"))
    assert code == 1
    page = (tmp_path / "gate.md").read_text()
    assert "| params.nonzero | 400 | 401 | FAILS |" in " ".join(page.split())
    code, out, _ = run(capsys, *flags, "--update")
    assert code == 0
    assert '-    "params.nonzero": 400,\n+    "params.nonzero": 401,' in out


def test_a_corrupt_record_fails_and_cannot_become_a_baseline(capsys, tmp_path):
    results = put(tmp_path / "r", tree())
    next((tmp_path / "r").rglob("seed1.json")).write_text("{")
    code, out, _ = run(capsys, "--results", results)
    assert code == 1
    assert "corrupt record" in out
    flags = ("--results", results, "--baseline", str(tmp_path / "b.json"), "--update")
    code, _, err = run(capsys, *flags)
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"schema": 2, "rows": {}}', '{"schema": 1, "rows": {"a": {}}}']
)
def test_a_broken_baseline_is_one_line_and_exit_code_2(capsys, tmp_path, text):
    results = put(tmp_path / "r", tree())
    path = tmp_path / "b.json"
    path.write_text(text)
    code, _, err = run(capsys, "--results", results, "--baseline", str(path))
    assert code == 2
    assert "not a baseline" in err
    assert err.count("\n") == 1


def test_a_baseline_with_a_value_too_few_is_refused(tmp_path):
    rows = json.loads(gate.baseline_json(gate.rows_of(tree())))
    next(iter(rows["rows"].values()))["score"].pop()
    path = tmp_path / "b.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(gate.BenchError, match="one value a seed"):
        gate.read_baseline(path)


def test_no_folder_is_exit_code_2(capsys, tmp_path):
    assert run(capsys, "--results", str(tmp_path / "none"))[0] == 2
    assert run(capsys, "--results", str(tmp_path), "--update")[0] == 2


def test_rows_with_collapsed_runs_widen_no_other_rows_tolerance():
    quiet = [record(v, method="pst", seed=s) for s, v in enumerate((0.80, 0.81, 0.82), 1)]
    loud = [record(v, method="random", seed=s) for s, v in enumerate((0.50, 0.60, 0.70), 1)]
    chance = [
        r.model_copy(update={"scores": r.scores.model_copy(
            update={"n": 100, "all": {"accuracy": r.scores.value, "majority": 0.5}})})
        for r in loud
    ]  # fmt: skip
    alone = gate.spreads(gate.rows_of(quiet))
    assert gate.spreads(gate.rows_of([*quiet, *chance])) == alone
    assert gate.spreads(gate.rows_of([*quiet, *loud])) != alone
    # Where all have collapsed, their spread is all there is.
    assert gate.spreads(gate.rows_of(chance)) == gate.spreads(gate.rows_of(loud))
    text = gate.baseline_json(gate.rows_of([*quiet, *chance]))
    assert text.count('"collapsed": true') == 1
