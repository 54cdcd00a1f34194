"""Settings are chosen on the select slice, by the same rule for all, and suites take them."""

import contextlib
import io
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import pytest

from bench.api import Method, grid
from bench.cli import main, tune
from bench.cli.shelves import Shelves
from bench.core.collapse import collapsed
from bench.core.overrides import Overrides
from bench.core.parameters import make_parameters
from bench.core.store import Store
from bench.core.tuning import (
    MOST_SETTINGS,
    TUNING_SEED,
    Choices,
    Trial,
    best_of,
    family_of,
    read,
    write,
)
from bench.engine import messages
from bench.planning import registry
from bench.planning.job import Job
from bench.planning.plan import expand, with_choice
from bench.planning.suites import load_suite
from bench.planning.trials import Search, searches, trial_jobs
from bench.reporting import boards, compare, leaderboard, pages
from bench.reporting.rows import collapse_note, label_of, method_name, score
from bench.review import publishing, submissions
from bench.review.choosing import choice_of
from tests import helpers
from tests.samples import record

STEPS = {"budget__steps": 60, "budget__batch": 8}
SMALL = ("--set", "budget.steps=60", "budget.batch=8")


def test_a_grid_leaves_defaults_out():
    assert grid(a=(1, 2), b=("x", "y")) == ({}, {"b": "y"}, {"a": 2}, {"a": 2, "b": "y"})


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_method_tries_few_settings_and_its_default_first(name):
    kind = registry.method(name)
    assert 1 <= len(kind.search) <= MOST_SETTINGS
    assert kind.search[0] == {}
    made = [make_parameters(kind.Params, setting, name) for setting in kind.search]
    assert all(a != b for a, b in itertools.combinations(made, 2))


def trial(value, **STEPS):
    return Trial(settings={}, value=value, **STEPS)


@pytest.mark.parametrize(
    ("trials", "higher", "best"),
    [
        ([trial(0.7), trial(0.8), trial(0.8)], True, 1),
        ([trial(0.8), trial(0.8)], True, 0),  # a tie: the default
        ([trial(30.0), trial(20.0)], False, 1),
        ([trial(None), trial(0.1)], True, 1),  # a failure loses
        ([trial(0.9, collapsed=True), trial(0.6)], True, 1),
        ([trial(None), trial(0.5, collapsed=True)], True, 1),
        ([trial(0.9, missed=True), trial(0.6)], True, 1),  # it prunes less than was asked for
        ([trial(0.6, missed=True), trial(0.9, missed=True)], True, 1),  # all of them do
        ([trial(0.5, collapsed=True), trial(0.6, collapsed=True)], True, 1),
    ],
)
def test_the_best_trial_wins(trials, higher, best):
    assert best_of(trials, higher) == best


@pytest.mark.parametrize(
    ("value", "everything", "metric", "n", "fallen"),
    [
        # Majority 0.6 of 96 items: standard error √(0.24 / 96) = 0.05.
        (0.69, {"majority": 0.6}, "accuracy", 96, True),
        (0.71, {"majority": 0.6}, "accuracy", 96, False),
        (0.40, {"majority": 0.6}, "accuracy", 96, True),
        # All positives: F1 is high, accuracy the majority's.
        (0.81, {"majority": 0.68, "accuracy": 0.68}, "f1", 1725, True),
        (0.85, {"majority": 0.68, "accuracy": 0.77}, "f1", 1725, False),
        (0.85, {"accuracy": 0.77}, "f1", 1725, False),
        (0.19, {}, "matthews", 100, True),  # 2 / √100
        (0.21, {}, "matthews", 100, False),
        (0.01, {}, "bleu", 100, False),  # nobody knows its level of chance
    ],
)
def test_a_collapsed_run_is_within_two_standard_errors_of_chance(
    value, everything, metric, n, fallen
):
    made = record(value)
    scores = made.scores.model_copy(
        update={"value": value, "all": {metric: value} | everything, "metric": metric, "n": n}
    )
    assert collapsed(made.model_copy(update={"scores": scores})) is fallen


def test_families():
    assert [family_of(t) for t in ("glue/rte", "reviews")] == ["glue", "reviews"]


SEARCH = grid(lr=(5e-5, 1e-3, 1e-2))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder in which gmp was tuned on the tiny suite; what the command printed."""
    folder, printed = tmp_path_factory.mktemp("tuned"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(registry.method("gmp"), "search", SEARCH)
        command = ["tune", "--suite", "tiny", "--method", "gmp", "--jobs", "2", *SMALL]
        assert main.main(command) == 0
    return folder / "results/local", printed.getvalue()


@pytest.fixture
def tuned(once, tmp_path, monkeypatch):
    """A copy of the tree, below the present folder; and what the command printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry.method("gmp"), "search", SEARCH)
    shutil.copytree(once[0], tmp_path / "results/local")
    return tmp_path / "results/local", once[1]


def test_all_trials_are_scored_on_select_and_the_best_is_written(tuned):
    root, told = tuned
    (path,) = (root / "tuning").rglob("*.json")
    choice = read(path)
    assert [t.settings for t in choice.trials] == [{}, {"lr": 1e-3}, {"lr": 1e-2}]
    trials, _ = Store(root / "trials").records()
    assert {r.cell.seed for r in trials} == {TUNING_SEED}
    assert {(r.scores.split, r.scores.n) for r in trials} == {("select", 200)}
    assert {r.budget.steps for r in trials} == {30}  # of 60
    assert [on.steps for on in choice.tasks.values()] == [30]
    by_setting = {r.cell.overrides.method: r.scores.value for r in trials}
    values = [by_setting[tuple(t.settings.items())] for t in choice.trials]
    assert [t.value for t in choice.trials] == values
    assert len(set(values)) > 1
    assert values[choice.best] == max(values)
    assert told.startswith("gmp unstructured 0.5: ")
    assert "best of 3" in told
    assert Store(root).records() == ([], [])  # trials are no results


def test_a_second_call_runs_nothing(tuned, capsys):
    root, _ = tuned
    stamps = {p: p.stat().st_mtime_ns for p in (root / "trials").rglob("*.json")}
    assert main.main(["tune", "--suite", "tiny", "--method", "gmp", *SMALL]) == 0
    assert "cells to run" not in capsys.readouterr().err
    assert stamps == {p: p.stat().st_mtime_ns for p in (root / "trials").rglob("*.json")}


def test_a_suite_takes_the_choice_where_nothing_is_given(tuned):
    root, _ = tuned
    (path,) = (root / "tuning").rglob("*.json")
    value = json.loads(path.read_text()) | {"best": 2}
    path.write_text(json.dumps(value))
    choices = Choices(root)
    cell = helpers.cell("gmp", **STEPS)
    assert with_choice(cell, choices).overrides.method == (("lr", 1e-2),)
    assert with_choice(helpers.cell("gmp", lr=1e-4, **STEPS), choices) == helpers.cell(
        "gmp", lr=1e-4, **STEPS
    )
    for other in (
        helpers.cell("gmp"),  # another budget
        helpers.cell("gmp", sparsity=0.6, **STEPS),
        helpers.cell("gmp", "tiny-gpt2", **STEPS),
        helpers.cell("pst", **STEPS),
    ):
        assert with_choice(other, choices) == other

    suite = load_suite("tiny").narrowed({"methods": ("gmp",)})
    suite = suite.changed(Overrides.of({"budget.steps": 60, "budget.batch": 8}))
    grids = tuple(g.model_copy(update={"tuned": True}) for g in suite.grids)
    for grids_, expected in ((suite.grids, ()), (grids, (("lr", 1e-2),))):
        found = expand(suite.model_copy(update={"grids": grids_}), choices=choices)
        (job,) = [job for job in found if job.cell.method == "gmp"]
        assert job.cell.overrides.method == expected


def test_a_choice_of_an_earlier_version_does_not_count(tuned, monkeypatch):
    root, _ = tuned
    cell = helpers.cell("gmp", **STEPS)
    assert Choices(root).of(cell) is not None
    monkeypatch.setattr(registry.method("gmp"), "version", 99)
    assert with_choice(cell, Choices(root)) == cell


def test_given_settings_are_scored_and_nothing_is_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["tune", "--suite", "tiny", "--method", "gmp", *SMALL, "lr=1e-3"]
    assert main.main(command) == 0
    assert "accuracy 0." in capsys.readouterr().out
    assert not (tmp_path / "results/local/tuning").exists()


@pytest.mark.parametrize(
    "search", [({"lr": 1e-3}, {}), ({}, *({"lr": 1e-3 * k} for k in range(1, 9)))]
)
def test_nine_settings_or_another_one_first_are_refused(search, monkeypatch, capsys):
    monkeypatch.setattr(registry.method("gmp"), "search", search)
    assert main.main(["tune", "--suite", "tiny", "--method", "gmp"]) == 2
    assert "at most 8, the default (no parameter) first" in capsys.readouterr().err


def test_nothing_to_choose_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["tune", "--suite", "tiny", "--method", "random"]) == 2
    assert "nothing to choose" in capsys.readouterr().err


def test_trials_start_from_dense_models_that_trained_as_long():
    for method, steps, dense in (("gmp", 30, []), ("ast", 30, [30]), ("sparsegpt", 60, [60])):
        pattern = "2:4" if method == "ast" else "unstructured"
        found = searches([Job.resolve(helpers.cell(method, pattern=pattern, **STEPS))])
        jobs = trial_jobs(found)
        assert {j.budget.steps for j in jobs if j.cell.method == method} == {steps}
        assert [j.budget.steps for j in jobs if j.cell.method == "dense"] == dense
        assert {j.split for j in jobs} == {"select"}
        assert {j.cell.overrides.of_budget for j in found[0].rows} == {
            Overrides.of({"budget.steps": 60, "budget.batch": 8})
        }


def test_a_job_keeps_its_split_on_its_way_to_another_process():
    job = Job.resolve(helpers.cell("magnitude"), "select")
    again = Job.of_order(json.loads(json.dumps(job.order)))
    assert (again.cell, again.split, again.dense.split) == (job.cell, "select", "select")
    assert isinstance(again.make_method(), Method)


def test_choices_are_published_with_the_records_that_they_stand_for(tuned, tmp_path):
    own, published = Store(tuned[0]), Store(tmp_path / "results")
    row = helpers.cell("gmp", **STEPS, lr=1e-3)
    other = helpers.cell("gmp", budget__steps=5)
    assert publishing.choices_of([SimpleNamespace(cell=other)], own) == []
    (choice,) = publishing.choices_of([SimpleNamespace(cell=row)], own)
    (line,) = publishing.choice_refusals(
        [choice.model_copy(update={"code": choice.code.model_copy(update={"dirty": True})})]
    )
    assert "was not committed; tune again" in line
    (path,) = publishing.publish_choices([choice], own, published)
    assert read(path) == choice
    assert Choices(own.root).all == []
    assert Choices(published.root).all == [choice]


def test_records_of_the_tuning_seed_are_not_published():
    made = record(seed=TUNING_SEED)
    assert any("is for trials" in line for line in publishing._of_record(made))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([0.80, 0.82], ""),
        ([0.80, 0.60, 0.84], ", collapsed 1 of 3 (82.0 without)"),
        ([0.60, 0.61], ", collapsed 2 of 2"),
    ],
)
def test_a_row_names_its_collapsed_runs(values, note):
    made = [record(value, seed=k) for k, value in enumerate(values, 1)]
    made = [  # the majority class of 100 items, ± 0.049
        r.model_copy(update={"scores": r.scores.model_copy(update={"all": {"majority": 0.6}})})
        for r in made
    ]
    assert collapse_note(made, 1) == note
    digits = collapse_note(made, 2)
    assert f"{score(made, 2)}{digits} " in leaderboard.table(made)


def test_a_board_says_where_settings_come_from_and_links_the_trials(tuned, tmp_path):
    root, _ = tuned
    choice = Choices(root).all[0].model_copy(update={"best": 1})
    path = write(root, choice)
    cells = {
        "best of 3": helpers.cell("gmp", **STEPS, lr=1e-3),
        "given": helpers.cell("gmp", **STEPS, lr=7e-3),
        "default": helpers.cell("magnitude", **STEPS),
    }
    made = [
        record(0.8).model_copy(update={"cell": cell, "key": cell.key}) for cell in cells.values()
    ]
    table = leaderboard.table(made, choices=Choices(root))
    for told, cell in cells.items():
        name = method_name(cell.method, cell.overrides)
        (row,) = [x for x in table.splitlines() if x.startswith(f"{name} ") and "score" not in x][
            :1
        ]
        assert told in row
    assert "settings" not in leaderboard.table(made)
    pages.write_pages(made, [], tmp_path / "pages", root, choices=Choices(root))
    page = "".join(p.read_text() for p in (tmp_path / "pages").glob("*.md"))
    (linked,) = re.findall(r"\[best of 3\]\(([^)]+)\)", page)
    assert (tmp_path / "pages" / linked).resolve() == path.resolve()


def test_chosen_settings_have_the_methods_plain_name_in_tables_and_comparisons(tuned):
    root, _ = tuned
    write(root, Choices(root).all[0].model_copy(update={"best": 1}))
    choices = Choices(root)
    cells = {
        "gmp": helpers.cell("gmp", **STEPS, lr=1e-3),
        "gmp lr=0.007": helpers.cell("gmp", **STEPS, lr=7e-3),
        "gmp default": helpers.cell("gmp", **STEPS),
        "magnitude": helpers.cell("magnitude", **STEPS),
    }
    assert {label_of(cell, choices): cell for cell in cells.values()} == cells
    assert label_of(cells["gmp default"]) == "gmp"
    made = [
        record(0.8 - i / 10).model_copy(update={"cell": cell, "key": cell.key})
        for i, cell in enumerate(cells.values())
    ]
    (board,) = boards.boards(made, choices)
    assert set(board.labels.values()) == set(cells)
    (line,), _ = compare.lines(made, "gmp", "magnitude", choices)
    assert line.a[0].cell == cells["gmp"]
    (line,), _ = compare.lines(made, "gmp", "magnitude")
    assert line.a[0].cell == cells["gmp default"]


def test_settings_do_not_depend_on_where_records_lie(tuned, tmp_path):
    for more in ([], ["--results", "elsewhere"]):
        options = main.parser().parse_args(["plan", "--suite", "tiny", *more])
        assert [c.method for c in Shelves.of(options).choices().all] == ["gmp"]


def test_trials_that_all_fail_choose_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = Job.resolve(helpers.cell("gmp"), "select")
    search = Search([job], ({}, {"lr": 1e-3}), [[job], [job]])
    lost = messages.failed(job, "error", "not today")
    assert choice_of(search, {job.cell: lost}) is None
    assert choice_of(search, {job.cell: None}) is None
    assert tune._line(search, None, {job.cell: lost}) == (
        "gmp unstructured 0.5: nothing is chosen; failed: not today"
    )


def test_a_task_without_a_select_slice_fails_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["tune", "--suite", "tiny", "--task", "tiny/zero-shot", "--model", "tiny-llama"]
    assert main.main([*command, "--method", "magnitude", "--set", "pool=row"]) == 1
    told = capsys.readouterr().out
    assert "failed: " in told
    assert "no select slice" in told


def test_a_damaged_choice_is_one_line(tuned, capsys):
    (path,) = (tuned[0] / "tuning").rglob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": 3}))
    assert main.main(["plan", "--suite", "tiny", "--method", "gmp"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "corrupt choice of settings: best is 3, and there are 3 trials" in line


def test_a_trial_is_no_submission():
    made = record(task="tiny/reviews", model="tiny-bert", method="magnitude")
    sent = made.model_copy(
        update={"scores": made.scores.model_copy(update={"split": "select"}), "origin": "them"}
    )
    assert any("a trial of settings is no result" in line for line in submissions.problems(sent))
