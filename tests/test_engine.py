"""The driver without any cell: order, dependencies, leases, fail-fast; the cells are made up."""

import os
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from bench.api import Budget
from bench.cli import driving, main
from bench.cli.plan_text import show_plan
from bench.cli.shelves import Shelves
from bench.core import provenance
from bench.core.record import PUBLISHED
from bench.core.store import Store
from bench.core.tables import duration, human
from bench.engine import estimate, isolate, leases, scheduler
from bench.engine.leases import Leases
from bench.engine.local import Local, shares
from bench.planning import plan
from bench.planning.job import Job
from tests import helpers
from tests.helpers import run_cell, trained_dir
from tests.samples import record as sample


def made(cell, failed=False):
    fields = {k: getattr(cell, k) for k in ("task", "model", "method", "pattern", "sparsity")}
    record = sample(failed=failed, seed=cell.seed, **fields)
    return record.model_copy(update={"versions": Job.resolve(cell).versions})


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What was run, in order; cells of seed 13 fail, dense ones leave their weights."""
    found = []
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))

    def run_isolated(job, timeout_s, log, on_progress, env, settings):
        cell = job.cell
        found.append((cell.method, cell.seed, timeout_s))
        if cell.method == "dense" and cell.seed != 13:
            trained_dir(cell).mkdir(parents=True)
        return made(cell, failed=cell.seed == 13)

    monkeypatch.setattr(isolate, "run_isolated", run_isolated)
    monkeypatch.setattr(isolate, "warm_up", lambda: None)
    monkeypatch.setattr(scheduler, "LOOK_S", 0.05)
    return found


def cells(*pairs):
    return [helpers.cell(method, seed=seed) for method, seed in pairs]


def jobs(*pairs):
    return [Job.resolve(cell) for cell in cells(*pairs)]


def drive(tmp_path, wanted, timeout_s=None):
    store = Store(tmp_path / "results")
    with Leases(store) as mine:
        records = []
        engine = Local(1, lambda *_: None, timeout_s)
        for record in scheduler.drive(wanted, engine, mine):
            store.put(record)
            records.append(record)
    assert not mine.held
    return records


def test_dense_first_and_what_stands_on_a_failure_fails(tmp_path, ran):
    wanted = jobs(("magnitude", 1), ("magnitude", 13), ("pst", 1), ("dense", 13), ("dense", 1))
    records = drive(tmp_path, wanted, timeout_s=7)
    assert {run[:2] for run in ran} == {("pst", 1), ("dense", 13), ("dense", 1), ("magnitude", 1)}
    assert {run[2] for run in ran} == {7}
    failed = {(r.cell.method, r.cell.seed) for r in records if r.status == "failed"}
    assert failed == {("dense", 13), ("magnitude", 13)}
    assert len(records) == 5


@pytest.mark.parametrize("slots", [1, 3])
def test_lost_dense_weights_are_made_again_once(tmp_path, ran, slots):
    wanted = jobs(("magnitude", 1), ("wanda", 1), ("random", 1))
    with Leases(Store(tmp_path / "results")) as mine:
        engine = Local(slots, lambda *_: None)
        records = list(scheduler.drive(wanted, engine, mine))
    assert [run[:2] for run in ran].count(("dense", 1)) == 1
    assert ran[0][0] == "dense"
    assert {r.cell.method for r in records} == {"magnitude", "wanda", "random"}  # not a dense one


def test_what_starts_from_dense_weights_that_cannot_be_made_again_fails(tmp_path, ran):
    (record,) = drive(tmp_path, jobs(("wanda", 13)))
    assert record.error.kind == "oom"
    assert "the dense cell it starts from failed" in record.error.message
    assert [run[0] for run in ran] == ["dense"]


def test_slots_share_the_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    threads = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    assert shares(2) == [threads] * 2
    assert shares(1) == [{}]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(3)] == ["3", "5", "3"]


def test_two_drivers_share_the_work(tmp_path, ran, monkeypatch):
    wanted = jobs(*((m, s) for s in (1, 2, 3, 4) for m in ("dense", "magnitude", "pst")))
    both, begin = threading.Barrier(2), Leases.begin

    def together(leases, cells):
        begin(leases, cells)
        both.wait(30)  # what one finishes before the other begins is no shared work

    monkeypatch.setattr(Leases, "begin", together)
    got = [[], []]

    def driver(i):
        got[i] = drive(tmp_path, wanted)

    threads = [threading.Thread(target=driver, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ran) == len(set(ran)) == 12
    assert all({r.cell for r in records} == {job.cell for job in wanted} for records in got)
    assert list((tmp_path / "results").rglob(".*")) == []


def test_a_living_lease_is_waited_for_and_its_record_taken(tmp_path, ran):
    (cell,) = cells(("pst", 1))
    store = Store(tmp_path / "results")
    other = Leases(store)
    assert other.take(cell)

    def finish():
        time.sleep(0.4)
        store.put(made(cell))
        other.drop(cell)

    threading.Thread(target=finish).start()
    assert [r.status for r in drive(tmp_path, [Job.resolve(cell)])] == ["done"]
    assert ran == []


DIES = """
import os, signal, sys
from filelock import SoftFileLease
lease = SoftFileLease(sys.argv[1], lease_duration=float(sys.argv[2]))
lease.acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_behind(path, how):
    """A lease as a driver leaves it that is killed here or elsewhere, or that loses power."""
    path.parent.mkdir(parents=True)
    if how == "dead":
        subprocess.run([sys.executable, "-c", DIES, str(path), str(leases.LEASE_S)])
        assert path.is_file()
        return
    lease = f"filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=x\nduration={leases.LEASE_S}\n"
    text = {"silent": lease, "torn": lease[:20], "empty": "", "older": lease.replace("60", "30")}
    path.write_text(text[how])


@pytest.mark.parametrize("how", ["dead", "silent", "torn", "empty", "older"])
def test_a_lease_without_an_owner_is_taken_over(tmp_path, ran, how):
    (cell,) = cells(("pst", 1))
    path = Leases(Store(tmp_path / "results")).path(cell)
    left_behind(path, how)
    if how != "dead":
        os.utime(path)
        assert not Leases(Store(tmp_path / "results")).take(cell)  # it may still be alive
        old = time.time() - leases.LEASE_S - 1
        os.utime(path, (old, old))
    assert [r.status for r in drive(tmp_path, [Job.resolve(cell)])] == ["done"]
    assert len(ran) == 1
    assert not path.exists()


def test_leases_beat_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    (cell,) = cells(("pst", 1))
    with Leases(Store(tmp_path)) as mine:
        assert mine.take(cell)
        path = mine.path(cell)
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not Leases(Store(tmp_path)).take(cell)
    assert not path.exists()


def test_without_a_place_for_leases_cells_run_all_the_same(tmp_path):
    (tmp_path / "results").write_text("no folder")
    with Leases(Store(tmp_path / "results")) as mine:
        assert mine.take(cells(("pst", 1))[0])


def test_a_lease_that_is_lost_is_not_taken_from_its_new_owner(tmp_path):
    (cell,) = cells(("pst", 1))
    with Leases(Store(tmp_path)) as first, Leases(Store(tmp_path)) as second:
        assert first.take(cell)
        old = time.time() - leases.LEASE_S - 1
        os.utime(first.path(cell), (old, old))
        assert second.take(cell)
        first.drop(cell)
        assert second.path(cell).exists()


def test_fail_fast_stops_and_keep_going_does_not(tmp_path, ran, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "results")
    wanted = plan.plan(jobs(("pst", 13), ("pst", 1), ("pst", 2)), store)
    shelves = Shelves(store, None)
    driving.run_planned(wanted, shelves, partial(Local, 1), fail_fast=True)
    assert [run[1] for run in ran] == [13]
    driving.run_planned(wanted, shelves, partial(Local, 1))
    assert [run[1] for run in ran] == [13, 13, 1, 2]


def test_a_rerun_that_fails_is_no_success_whatever_record_there_was(
    tmp_path, ran, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["run", "--suite", "tiny", "--method", "gmp", "--seeds", "13", "--rerun"]
    store = Store(tmp_path / "results" / "local")
    for cell in cells(("dense", 13), ("gmp", 13)):
        store.put(made(cell))
    assert main.main(command) == 1
    assert "0 of 2 cells done (2 failed)" in capsys.readouterr().out
    assert len(store.records()[0]) == 2  # the older records stay
    path = str(store.path(cells(("gmp", 13))[0]))
    assert main.main(["verify", path, "--rerun"]) == 1


def test_failed_cells_are_run_again_unless_told_otherwise(tmp_path):
    store = Store(tmp_path)
    bad, good, new = cells(("pst", 13), ("pst", 1), ("pst", 2))
    store.put(made(bad, failed=True))
    store.put(made(good))
    wanted = [Job.resolve(cell) for cell in (bad, good, new)]

    def todo(**how):
        return [item.job.cell for item in plan.plan(wanted, store, **how) if item.todo]

    assert todo() == [bad, new]
    assert todo(retry_failed=False) == [new]
    assert todo(rerun=True) == [bad, good, new]


def here(cell, train_s, **budget):
    record = made(cell)
    budget = Budget(**({"steps": 60, "batch": 16, "length": 20, "calib": 32} | budget))
    cost = record.cost.model_copy(update={"train_s": train_s, "prune_s": 0.0, "eval_s": 10.0})
    return record.model_copy(update={"budget": budget, "cost": cost, "env": provenance.env()})


def test_estimates_come_from_the_nearest_records():
    pst, dense, wanda = (
        Job.resolve(helpers.cell(name, seed=3)) for name in ("pst", "dense", "wanda")
    )
    same = [here(helpers.cell("pst", seed=s), train_s) for s, train_s in ((1, 100.0), (2, 140.0))]
    other_method = here(helpers.cell("lora"), 50.0)
    other_budget = here(helpers.cell("lora"), 30.0, steps=30)
    elsewhere = here(pst.cell, 1.0).model_copy(update={"env": {"cpu": "another one"}})
    everything = estimate.Estimator([*same, other_method, elsewhere])
    assert everything.seconds(pst) == 130
    assert not everything.elsewhere
    assert everything.seconds(dense) == 110  # the median of what trains here
    assert estimate.Estimator([other_budget]).seconds(pst) == 70  # twice the tokens
    assert everything.seconds(wanda) is None  # nothing trained alike
    trained = estimate.Estimator([here(dense.cell, 100.0)])
    assert trained.seconds(dense) == 110
    assert trained.seconds(Job.resolve(helpers.cell("dense", export__quantize="int4"))) is None
    only = estimate.Estimator([elsewhere])
    assert (only.seconds(pst), only.elsewhere) == (11, True)
    published = [r.model_copy(update={"origin": PUBLISHED}) for r in same]
    own = here(pst.cell, 200.0)
    assert estimate.Estimator([*published, own]).seconds(pst) == 210  # of this very machine
    assert estimate.Estimator([*published, other_method]).seconds(pst) == 130  # of its kind
    assert [duration(s) for s in (40, 750, 12_600)] == ["40 s", "12 min", "3.5 h"]


def test_plan_tells_states_and_time(tmp_path, capsys):
    store = Store(tmp_path)
    known, new, bad = cells(("pst", 1), ("pst", 2), ("wanda", 13))
    store.put(here(known, 100.0).model_copy(update={"versions": Job.resolve(known).versions}))
    store.put(made(bad, failed=True))
    show_plan(plan.plan([Job.resolve(cell) for cell in (known, new, bad)], store), store)
    lines = capsys.readouterr().out.splitlines()
    macs = human(estimate.Estimator([]).training_macs(Job.resolve(new)))
    assert f"missing  run  {new}  about 2 min, {macs} training MACs" in lines
    assert f"failed   run  {bad}" in lines
    assert lines[-1] == (
        "2 of 3 cells to run (1 done, 1 missing, 1 failed); "
        f"about 2 min, {macs} training MACs; no record tells the time of 1"
    )


def test_training_macs_are_those_of_the_record():
    for name in ("dense", "magnitude", "ast", "lora"):
        cell = helpers.cell(name, "tiny-llama", budget__steps=2, budget__batch=4)
        if Job.resolve(cell).needs_dense and not trained_dir(cell.dense).is_dir():
            run_cell(cell.dense, lambda *_: None)
        update = run_cell(cell, lambda *_: None).macs.train
        assert estimate.Estimator([]).training_macs(Job.resolve(cell)) == update * 4 * 2
        assert (update > 0) == (name != "magnitude")
    nowhere = Job.resolve(helpers.cell("dense", "nobody/nothing"))
    assert estimate.Estimator([]).training_macs(nowhere) is None
