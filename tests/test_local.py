"""Own records and published ones: who runs, what tables show, what stays untouched."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import tasks
from bench.cli import main
from bench.cli.flags import OWN, RESULTS
from bench.cli.shelves import Shelves
from bench.core.errors import BenchError
from bench.core.record import PUBLISHED
from bench.core.store import Store
from bench.core.tables import markdown
from bench.engine import local, progress
from bench.engine.estimate import Estimator
from bench.engine.local import default_slots
from bench.planning import reach, registry
from bench.planning.job import Job
from bench.reporting import axes, boards, compare, cost_tables, leaderboard, main_table, pages
from bench.reporting.html import page
from bench.reporting.rows import ordered, own_first, with_published
from bench.sources import hub
from tests import helpers
from tests.samples import record

ROOT = Path(__file__).resolve().parents[1]
BUDGET = {"budget__steps": 6, "budget__batch": 4}
SMALL = ("--set", "budget.steps=6", "budget.batch=4")


def git(*arguments):
    mine = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run = subprocess.run(["git", *mine, *arguments], capture_output=True, text=True, check=True)
    return run.stdout


def published(value, cell, **update):
    """A published record of a cell, of the present versions."""
    names = ("task", "model", "method", "pattern", "sparsity", "seed", "overrides")
    made = record(value, **{name: getattr(cell, name) for name in names})
    return made.model_copy(update={"versions": Job.resolve(cell).versions, **update})


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A committed folder with published records of a tiny cell and its baseline, seeds 1 to 3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for seed in (1, 2, 3):
        for method, value in (("dense", 0.9), ("magnitude", 0.2)):
            cell = helpers.cell(method, seed=seed, **BUDGET)
            Store(RESULTS).put(published(value + seed / 1000, cell))
    assert main.main(["report"]) == 0
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "published")
    return tmp_path


def files(*folders):
    found = (p for folder in folders for p in Path(folder).rglob("*") if p.is_file())
    return {p: p.read_bytes() for p in found if OWN not in p.parents and "local" not in p.parts}


def test_a_run_computes_what_is_published_and_touches_none_of_it(clone, capsys, monkeypatch):
    before = files("results", "reports")
    capsys.readouterr()
    run = ["run", "--suite", "tiny", "--method", "magnitude", *SMALL]
    assert main.main(run) == 0
    out, err = capsys.readouterr()
    own, problems = Store(OWN).records()
    assert problems == []
    assert {r.cell.method for r in own} == {"dense", "magnitude"}
    assert all(r.data.repo != "r" for r in own)  # computed, and no copy of what is published
    assert files("results", "reports") == before
    assert git("status", "--porcelain") == ""

    # What runs is told at once, then each start and each end.
    lines = err.splitlines()
    assert lines[0] == "sparsebench: 2 of 2 cells to run; looking for their data and weights"
    assert "at a time, about" in lines[1]
    starts = [line for line in lines if line.endswith(" starts") and ": " not in line]
    assert [line.split()[3] for line in starts] == ["dense", "magnitude"]
    assert sum(" accuracy " in line for line in lines) == 2

    # Own rows come first, then the published ones, then a line for each row in both.
    table = [line.split() for line in out.splitlines() if line.startswith(("dense", "magnitude"))]
    names = [" ".join(line[:2]) for line in table[:4]]
    assert names == ["dense dense", "magnitude unstructured", "dense (published)",
                     "magnitude (published)"]  # fmt: skip
    judged = [line for line in out.splitlines() if " here, published " in line]
    assert [line.split()[2] for line in judged] == ["dense", "magnitude"]
    assert all("(3 seeds)" in line for line in judged)

    # The second call runs nothing.
    monkeypatch.setattr(local.isolate, "run_isolated", None)
    assert main.main(run) == 0
    again = capsys.readouterr()
    assert again.out == out
    assert again.err == ""
    assert git("status", "--porcelain") == ""
    # The project's pages are made of published records alone.
    assert main.main(["report"]) == 0
    assert git("status", "--porcelain") == ""
    shown = (clone / "reports/local/other.md").read_text()
    assert "magnitude (published)" in shown.replace("\\", "")
    assert "](../../results/local/tiny.reviews/" in shown.replace("\\", "")
    assert "](../../results/tiny.reviews/" in shown.replace("\\", "")


def test_states_are_those_of_own_records(clone, capsys):
    capsys.readouterr()
    assert main.main(["plan", "--suite", "tiny", "--method", "magnitude", *SMALL]) == 0
    out = capsys.readouterr().out
    assert out.count("missing  run") == 2
    assert "about" in out  # published records tell the time


def test_no_command_runs_into_the_published_records():
    with pytest.raises(BenchError, match="holds published records"):
        Shelves.of(Namespace(results=ROOT / "results"))
    assert Shelves.of(Namespace(results=Path("elsewhere"))).published is None


def mine(value, **cell):
    env = {"cpu": "this one", "threads": 1}
    return record(value, **cell).model_copy(update={"env": env})


def theirs(value, **cell):
    return mine(value, **cell).model_copy(update={"origin": PUBLISHED})


DENSE = {"method": "dense", "pattern": "dense", "sparsity": 0.0}


def both():
    """One seed of PST and dense here; three of them and of GMP published, all much better."""
    own = [mine(0.40, seed=1), mine(0.50, seed=1, **DENSE)]
    other = [
        theirs(value + seed / 1000, seed=seed, items="01" * 50, **cell)
        for seed in (1, 2, 3)
        for value, cell in ((0.8, {}), (0.9, {"method": "gmp"}), (0.95, DENSE))
    ]
    return own, other


def test_own_rows_come_first_and_recovery_is_against_the_dense_row_of_the_same_kind():
    own, other = both()
    (board,) = boards.boards(with_published(own, other))
    assert [(key[0], key[-1]) for key, _ in board.rows] == [
        ("dense", ""),
        ("pst", ""),
        ("dense", "published"),
        ("gmp", "published"),
        ("pst", "published"),
    ]
    recovery = {(key[0], key[-1]): value for key, value in board.recovery.items()}
    assert recovery["pst", ""] == pytest.approx(0.40 / 0.50)
    assert recovery["pst", "published"] == pytest.approx(0.802 / 0.952)
    ranks = {(key[0], key[-1]): board.ranks[key] for key, _ in board.rows}
    assert ranks["pst", ""] == "–"  # one seed
    assert ranks["pst", "published"] != "–"


def test_only_published_rows_of_the_same_table_stand_beside():
    own, other = both()
    others = [theirs(0.5, task="glue/rte"), theirs(0.5, overrides=(("budget.steps", 9),))]
    assert with_published(own, [*other, *others]) == [*own, *other]


def test_times_of_own_and_published_records_never_mix():
    own, other = both()
    shown = with_published(own, other)
    text = leaderboard.table(shown, markdown)
    scores, costs = text.split("costs on this one, 1 thread")
    assert "costs on" not in costs
    assert "\\(published\\)" in scores
    assert "published" not in costs.split("every score")[0]
    dense, *_ = rows = ordered(shown)
    time, trained = axes.costs(dense)
    assert time.label == "training time / dense's"
    assert {key[-1]: time.of(records) is not None for key, records in rows} == {
        "": True,
        "published": False,
    }
    assert all(trained.of(records) == 3 for _, records in rows)
    assert cost_tables.hardware(own[0]) != cost_tables.hardware(other[0])
    (board,) = boards.boards(shown)
    assert main_table.compute_note(board).startswith("2 cells took")  # nine are published
    (line,) = compare.lines(own_first(own, other), "pst", "gmp")[0]
    assert compare._seconds(line) == "other hardware"


def test_a_comparison_takes_own_records_and_published_ones_of_other_rows():
    own, other = both()
    found = own_first(own, other)
    assert {(r.cell.method, r.origin) for r in found} == {
        ("pst", "local"),
        ("dense", "local"),
        ("gmp", "published"),
    }
    text = compare.report(found, "pst", "gmp")
    assert "published records stand for gmp in 1 of 1" in text
    assert "stand for pst" not in text


def test_pages_link_each_row_to_its_tree_and_explain_the_mark(tmp_path):
    own, other = both()
    places = (tmp_path / "reports/local", tmp_path / "results/local", tmp_path / "results")
    pages.write_pages(with_published(own, other), [], *places)
    text = (places[0] / "quick.md").read_text()
    assert "](../../results/local/reviews/minilm-l6/pst/unstructured-0.50)" in text
    assert "](../../results/reviews/minilm-l6/gmp/unstructured-0.50)" in text
    assert "**published**: the project's own records" in text
    shown = (places[0] / "index.html").read_text()
    assert "gmp (published)" in shown
    assert "the project&#39;s own records" in shown or "the project's own records" in shown
    pages.write_pages(own, [], *places)
    assert "**published**" not in (places[0] / "quick.md").read_text()


def test_the_html_page_has_no_seconds_of_published_rows():
    from bench.reporting import html

    own, other = both()
    (board,) = boards.boards(with_published(own, other))
    section = html.Section("quick", board, [])
    names = {row["words"][0] for row in html._rows(0, section)}
    assert names == {"dense", "pst", *(f"{m} (published)" for m in ("dense", "gmp", "pst"))}
    for row in html._rows(0, section):
        assert (row["numbers"][-1][0] == "") == ("published" in row["words"][0])
    assert page([section], [])


def jobs(*methods, **more):
    return [Job.resolve(helpers.cell(name, **more)) for name in methods]


def test_as_many_cells_as_cores_run_if_memory_suffices(monkeypatch):
    wanted, knows_nothing = jobs("dense", "pst", "gmp"), Estimator([])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(local, "_memory", lambda: 64 * 2**30)
    assert default_slots(wanted, knows_nothing) == 2
    assert default_slots(wanted[:1], knows_nothing) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert default_slots(wanted, knows_nothing) == 3
    assert default_slots(wanted, knows_nothing, processes=32) == 2
    # Each cell of a tiny model is taken for one and a half GiB; a record knows better.
    monkeypatch.setattr(local, "_memory", lambda: 4 * 2**30)
    assert default_slots(wanted, knows_nothing) == 2
    known = published(0.5, wanted[0].cell)
    known = known.model_copy(
        update={
            "budget": wanted[0].budget,
            "cost": known.cost.model_copy(update={"peak_bytes": 3 * 2**30}),
        }
    )
    assert default_slots(wanted, Estimator([known])) == 1
    # A model that nothing is known of may need all there is.
    monkeypatch.setattr(local, "_memory", lambda: 2**40)
    assert default_slots(jobs("dense", "pst", model="nobody/nothing"), knows_nothing) == 1


def test_a_gpu_runs_one_cell(monkeypatch):
    knows_nothing = Estimator([])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(local, "_memory", lambda: 1)
    wanted = jobs("dense", "pst", "gmp", "lora", "wanda")
    assert default_slots(wanted, knows_nothing) == 4
    assert default_slots(wanted, knows_nothing, processes=2) == 2


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


def test_the_time_left_follows_the_pace_of_finished_cells(clock, capsys):
    dense, pst, gmp = (helpers.cell(name) for name in ("dense", "pst", "gmp"))
    shown = progress.Progress({dense: 100.0, pst: 200.0, gmp: None}, slots=2)
    assert shown.left() == (100 + 200 + 150) / 2  # an unknown cell takes as long as others do
    shown.start(dense)
    shown.start(pst)
    clock.now = 40.0
    assert shown.left() == (60 + 160 + 150) / 2
    shown.step(pst, "train", 30, 60)
    shown.show()
    clock.now = 200.0
    shown.done(published(0.9, dense))  # twice as long as expected
    assert shown.left() == max(200, 2 * 150, (200 + 2 * 150) / 2)
    err = capsys.readouterr().err.splitlines()
    assert err[:2] == [f"[0/3] {dense} starts", f"[0/3] {pst} starts"]
    assert err[2] == "[0/3] 40 s, about 3 min left: dense 0 starts, pst 0.5 train 30/60"
    assert err[3].startswith(f"[1/3] {dense}: accuracy 90.00 in ")


def test_the_time_left_follows_a_training_that_is_under_way(clock):
    dense, pst = (helpers.cell(name) for name in ("dense", "pst"))
    shown = progress.Progress({dense: 100.0, pst: 200.0}, slots=1)
    shown.start(dense)
    clock.now = 10.0
    shown.step(dense, "train", 50, 100)  # it went on from a checkpoint
    clock.now = 30.0
    shown.step(dense, "train", 60, 100)
    # A tenth in 20 s: 80 s more, and 200 s for a whole training, twice as long as expected.
    assert shown.left() == pytest.approx(80 + 2 * 200)


def test_without_any_record_no_time_is_told(clock, capsys):
    cell = helpers.cell("dense")
    shown = progress.Progress({cell: None})
    assert shown.left() is None
    shown.start(cell)
    shown.show()
    assert capsys.readouterr().err.splitlines()[-1] == "[0/1] 0 s: dense 0 starts"


def test_a_long_cell_is_heard_of(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_S", 0.02)
    cell = helpers.cell("dense")
    with progress.progress({cell: 5.0}) as shown:
        shown.start(cell)
        progress.time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all("left: dense 0 starts" in line for line in lines[1:])


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from bench.planning import reach
code = reach.main(sys.argv[2:])
known = {*sys.stdlib_module_names, "bench", "tasks", "__main__"}
print(code, sorted({m.split(".")[0] for m in sys.modules} - known))
"""


def alone(tmp_path, *arguments, **environment):
    command = [sys.executable, "-S", "-I", "-c", ALONE, str(ROOT), *arguments]
    base = {k: v for k, v in os.environ.items() if k.lower() != "https_proxy"}
    more = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    more["SPARSEBENCH_CACHE"] = str(tmp_path / "cache")
    run = subprocess.run(
        command, capture_output=True, text=True, env=base | more | environment, check=True
    )
    return run.stdout.strip(), run.stderr


def test_the_hub_is_asked_for_before_any_package_is_installed(tmp_path):
    out, err = alone(tmp_path, "--suite", "glue", "--method", "pst", "magnitude")
    assert out == "2 []"
    (line,) = err.splitlines()
    assert line.startswith("sparsebench: cannot reach nyu-mll/glue on the hub; set SPARSEBENCH_HUB")
    for suite in ("quick", "zero-shot", "tiny"):
        assert alone(tmp_path, "--suite", suite) == ("0 []", "")
    assert alone(tmp_path, "--suite", "glue", "--task", "reviews") == ("0 []", "")
    assert "openai-community/gpt2" in alone(tmp_path, "--model", "gpt2")[1]
    assert alone(tmp_path, "--model", "minilm-l6", "gpt2-mini") == ("0 []", "")


def test_a_mirror_or_an_earlier_download_is_enough(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(reach, "_online", lambda: False)
    both_ = ["nyu-mll/glue", "nobody/nothing"]
    assert reach.missing(["glue/rte", "glue/cola", "reviews"], ["nobody/nothing"]) == both_
    (tmp_path / "hf/hub/models--nobody--nothing").mkdir(parents=True)
    assert reach.missing(["glue/rte"], ["nobody/nothing"]) == ["nyu-mll/glue"]
    (tmp_path / "mirror/nyu-mll/glue").mkdir(parents=True)
    monkeypatch.setenv("SPARSEBENCH_HUB", str(tmp_path / "mirror"))
    assert reach.missing(["glue/rte"], ["nobody/nothing"]) == []
    monkeypatch.setenv("SPARSEBENCH_HUB", str(tmp_path / "none"))
    assert reach.main(["--suite", "glue"]) == 2


def test_what_lies_on_the_hub_alone_is_listed(monkeypatch):
    """The list of `tasks` names what each task asks the hub for, and no task else does."""
    asked = {}

    def load_split(repo, config, split, revision):
        asked.setdefault("now", []).append(repo)
        raise hub.offline(repo)

    monkeypatch.setattr(hub, "load_split", load_split)
    for name in tasks.BUILTIN:
        if name == "reviews" or name.startswith(("zero-shot", "tiny")):
            assert name not in tasks.ON_HUB
            continue
        asked.clear()
        task = type(registry.task(name))(name)
        with pytest.raises(BenchError):
            task.prepare()
        assert asked["now"][0] == tasks.ON_HUB[name], name
