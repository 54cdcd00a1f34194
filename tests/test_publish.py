"""Is a score here inside the published tolerance? Which records may be published?"""

import math
import os
import statistics
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.cli import main
from bench.cli.flags import OWN, RESULTS
from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.record import LOCAL, PUBLISHED
from bench.core.record_parts import Versions
from bench.core.store import Store, path_of
from bench.planning import registry
from bench.planning.job import Job
from bench.review import gate, publishing, reproduction, submissions
from tests import helpers
from tests.samples import record
from tests.test_local import git


def of(values, origin=PUBLISHED, seeds=None, **more):
    """Records of one row, of the present versions."""
    made = [record(v, seed=s, **more) for s, v in zip(seeds or range(1, 99), values, strict=False)]
    versions = Job.resolve(made[0].cell).versions
    return [r.model_copy(update={"origin": origin, "versions": versions}) for r in made]


def told(here, there, **more):
    (line,) = reproduction.comparisons(of(here, LOCAL, **more), there)
    return line


SPREAD = (0.80, 0.82, 0.84)


def by_hand(values, new):
    """The tolerance around the mean of `values`, with three seeds of one row and no other row."""
    quantile = stats.t.ppf(0.995, len(values) - 1)
    return quantile * statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / new)


@pytest.mark.parametrize("new", [1, 3])
def test_the_verdict_turns_where_the_formula_says(new):
    edge = by_hand(SPREAD, new)
    for sign in (-1, 1):
        inside = told([0.82 + sign * 0.99 * edge] * new, of(SPREAD))
        assert inside.endswith(f"inside the tolerance of {100 * edge:.2f}")
        outside = told([0.82 + sign * 1.01 * edge] * new, of(SPREAD))
        assert outside.endswith(f"outside the tolerance of {100 * edge:.2f}")
    assert inside.startswith("reviews minilm-l6 pst unstructured 0.5: ")
    assert "published 82.00 ± 2.00 (3 seeds)" in inside


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_on_the_same_seeds_it_is_the_verdict_of_verify(here, there):
    published, own = of(there), of(here, LOCAL)
    moved = gate.changes(gate.rows_of(published), gate.rows_of(own))
    assert ("outside" in told(here, published)) == any(c.what == "accuracy" for c in moved)


def test_other_rows_of_the_task_and_model_tell_how_far_seeds_differ():
    alone, wide = of([0.5, 0.5, 0.5], sparsity=0.9), of([0.3, 0.6, 0.9])
    assert "outside" in told([0.6], alone, sparsity=0.9)
    assert "inside" in told([0.6], [*alone, *wide], sparsity=0.9)
    elsewhere = of([0.3, 0.6, 0.9], task="glue/rte")
    assert "outside" in told([0.6], [*alone, *elsewhere], sparsity=0.9)


def test_a_working_run_is_judged_by_working_runs():
    def scored(values, **more):
        made = of(values, **more)
        chance = {"majority": 0.5}
        return [
            r.model_copy(update={"scores": r.scores.model_copy(update={"all": chance, "n": 1000})})
            for r in made
        ]

    def line(here, there):
        # Another row tells how far seeds differ; rows with collapsed runs do not.
        published = [*scored(there), *scored(SPREAD, sparsity=0.9)]
        return reproduction.comparisons(scored(here, origin=LOCAL), published)[0]

    edge = by_hand(SPREAD, 1)
    fallen = [*SPREAD, 0.5]
    inside = line([0.82 + 0.99 * edge], fallen)
    assert "published 82.00 ± 2.00 (3 seeds; 1 more collapsed), inside" in inside
    assert "outside" in line([0.82 - 1.01 * edge], fallen)
    # A run that has collapsed is one of them.
    assert "(4 seeds), inside" in line([0.5], fallen)
    assert "(3 seeds), inside" in line([0.52], [0.5, 0.51, 0.52])
    assert "outside" in line([0.5], SPREAD)


def test_an_earlier_version_is_named_and_not_judged():
    old = [r.model_copy(update={"versions": Versions(method=99, task=1)}) for r in of(SPREAD)]
    assert told([0.1], old).endswith("(3 seeds), of an earlier version: not judged")
    # Its spread says nothing of the present version's.
    steady = of([0.5, 0.5, 0.5], sparsity=0.9)
    wild = [r.model_copy(update={"versions": Versions(method=99, task=1)})
            for r in of([0.3, 0.6, 0.9])]  # fmt: skip
    assert "outside" in told([0.6], [*steady, *wild], sparsity=0.9)


def test_other_data_is_not_judged_and_other_counts_are_named():
    (own,) = of([0.82], LOCAL)
    data = own.model_copy(update={"data": own.data.model_copy(update={"fingerprint": "g"})})
    (line,) = reproduction.comparisons([data], of(SPREAD))
    assert line.endswith("not judged: data.fingerprint differs")
    params = own.model_copy(update={"params": own.params.model_copy(update={"stored": 601})})
    (line,) = reproduction.comparisons([params], of(SPREAD))
    assert "inside the tolerance" in line
    assert line.endswith("; other counts: params.stored")


def test_only_rows_that_are_published_have_a_line():
    assert reproduction.comparisons(of([0.5], LOCAL), of(SPREAD, method="gmp")) == []
    assert reproduction.comparisons(of([0.5], LOCAL), of(SPREAD, origin="someone")) == []
    lines = reproduction.comparisons(
        [*of([0.5], LOCAL), *of([0.5], LOCAL, overrides=(("lr", 0.1),))],
        [*of(SPREAD), *of(SPREAD, overrides=(("lr", 0.1),))],
    )
    assert [line.partition(":")[0] for line in lines] == [
        "reviews minilm-l6 pst unstructured 0.5",
        "reviews minilm-l6 pst lr=0.1 unstructured 0.5",
    ]


@pytest.fixture(scope="module")
def made():
    """Honest records of two rows, as a run of a committed checkout leaves them."""
    cells = [
        helpers.cell(name, seed=seed, budget__steps=3, budget__batch=4)
        for seed in (1, 2, 3)
        for name in ("dense", "magnitude")
    ]
    found = [helpers.run_cell(cell) for cell in cells]
    code = found[0].code.model_copy(update={"dirty": False, "git": "0" * 40})
    return [r.model_copy(update={"code": code}) for r in found]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".gitignore").write_text("results/local/\n")
    (tmp_path / "page.md").write_text("text\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path


def publish(capsys, *arguments):
    code = main.main(["publish", *arguments])
    return (code, *capsys.readouterr())


def keep(records):
    for one in records:
        Store(OWN).put(one)


def test_complete_rows_are_moved(clone, made, capsys):
    keep(made)
    code, out, _ = publish(capsys, "--dry-run")
    assert code == 0
    assert out.count("would publish results/tiny.reviews/") == 6
    assert not Store(RESULTS).records()[0]
    code, out, _ = publish(capsys)
    assert code == 0
    assert out.count("published results/tiny.reviews/") == 6
    moved = Store(RESULTS).records()[0]
    assert {r.cell for r in moved} == {r.cell for r in made}
    assert Store(OWN).records() == ([], [])
    assert git("status", "--porcelain") == "?? results/\n"
    code, _, err = publish(capsys)
    assert code == 2
    assert err.count("\n") == 1


def test_a_row_may_follow_its_published_dense_row(clone, made, capsys):
    keep(made)
    code, out, _ = publish(capsys, "--method", "magnitude")
    assert code == 1
    assert out.count("recovery needs this dense cell") == 3
    assert publish(capsys, "--method", "dense")[0] == 0
    git("add", ".")
    git("commit", "-qm", "dense")
    assert publish(capsys, "--method", "magnitude")[0] == 0


def test_a_row_has_the_seeds_of_the_published_dense_row(clone, made, capsys):
    dense = [r for r in made if r.cell.method == "dense"]
    keep([*dense, *changed(dense[:1], cell={"seed": 4})])
    assert publish(capsys, "--method", "dense")[0] == 0
    git("add", ".")
    git("commit", "-qm", "dense")
    keep(r for r in made if r.cell.method == "magnitude")
    code, out, _ = publish(capsys)
    assert code == 1
    assert "magnitude/unstructured-0.50" in out
    assert "no seed 4, which other rows have" in out


def changed(records, **update):
    first, *rest = records
    if "cell" in update:
        update["cell"] = Cell(**(first.cell.model_dump() | update["cell"]))
        update["key"] = update["cell"].key
    for name, value in update.items():
        if isinstance(value, dict):
            update[name] = getattr(first, name).model_copy(update=value)
    return [first.model_copy(update=update), *rest]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rs: rs[:-2], "magnitude/unstructured-0.50-{key}: 2 of at least 3 seeds"),
        (
            lambda rs: [*rs, changed([rs[0]], cell={"seed": 4})[0]],
            "magnitude/unstructured-0.50-{key}: no seed 4, which other rows have",
        ),
        (
            lambda rs: changed(rs, versions=Versions(method=99, task=1)),
            "seed1.json: an earlier version of its method or task made it; run it again",
        ),
        (lambda rs: changed(rs, code={"dirty": True}), "was not committed; run it again"),
        (lambda rs: changed(rs, code={"git": "unknown"}), "was not committed; run it again"),
        (lambda rs: changed(rs, params={"stored": 1}), "params.stored is not nonzero + all"),
        (lambda rs: changed(rs, origin="someone"), "it comes from 'someone'"),
        (lambda rs: changed(rs, cell={"model": "local/mine-0123"}), "a folder of this machine"),
        (lambda rs: changed(rs, cell={"method": "theirs"}), "method 'theirs' is not one of this"),
    ],
)
def test_each_reason_against_publication_is_one_line(clone, made, capsys, change, line):
    wrong = change(list(made))
    keep(wrong)
    before = {p: p.read_bytes() for p in OWN.rglob("*.json")}
    code, out, _ = publish(capsys)
    assert code == 1
    key = path_of(made[0].cell).parent.name.rpartition("-")[2]
    refused = out.splitlines()
    assert all(text.startswith("refused: ") for text in refused)
    assert any(line.format(key=key) in text for text in refused), out
    assert {p: p.read_bytes() for p in OWN.rglob("*.json")} == before
    assert not Store(RESULTS).records()[0]


def test_a_damaged_file_is_named(clone, made, capsys):
    keep(made)
    Store(OWN).path(made[0].cell).write_text("{")
    code, out, _ = publish(capsys)
    assert code == 1
    assert "seed1.json: corrupt record" in out


def test_the_tree_must_be_committed(clone, made, capsys):
    keep(made)
    (clone / "page.md").write_text("other text\n")
    code, out, _ = publish(capsys)
    assert (code, out) == (
        1,
        "refused: page.md is not committed: commit or stash what has changed\n",
    )


def test_outside_a_repository_nothing_is_published(tmp_path, monkeypatch, made, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    keep(made)
    code, out, _ = publish(capsys)
    assert code == 1
    assert out.startswith("refused: . is in no git repository")


def test_a_full_disk_keeps_the_record_here(clone, made, monkeypatch):
    keep(made)

    def full(record):
        raise BenchError("cannot write", "disk")

    published = Store(RESULTS)
    monkeypatch.setattr(published, "put", full)
    with pytest.raises(BenchError):
        publishing.publish(made, Store(OWN), published)
    assert len(Store(OWN).records()[0]) == len(made)


def test_published_is_no_name_of_a_sender():
    (sent,) = of([0.5])
    assert any("is reserved" in line for line in submissions.problems(sent))
    assert registry.is_stale(sent) is False


def test_git_is_asked_about_the_whole_tree(clone):
    below = clone / "results"
    below.mkdir()
    assert publishing.provenance.uncommitted(below) == []
    (clone / "new.txt").write_text("x")
    assert publishing.provenance.uncommitted(below) == ["new.txt"]
    subprocess.run(["git", "add", "new.txt"], check=True)
    assert publishing.provenance.uncommitted(below) == ["new.txt"]


def test_git_writes_nothing_and_so_leaves_no_lock_if_it_is_killed(clone):
    index = clone / ".git" / "index"
    tracked = next(path for path in clone.glob("*") if path.is_file())
    os.utime(tracked, (1e9, 1e9))  # a new time, which `git status` would write down
    before = index.read_bytes()
    assert publishing.provenance.uncommitted(clone) == []
    assert index.read_bytes() == before
    subprocess.run(["git", "status"], check=True, capture_output=True)
    assert index.read_bytes() != before
