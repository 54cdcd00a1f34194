"""The whole path, run → record → report, and what becomes of bad cells."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from bench.cli import main
from bench.core.store import Store
from bench.planning import registry
from tests import helpers

METHODS = """
    import os, time
    import torch
    from methods.magnitude import Magnitude
    from methods.dense import Dense
    from bench.api import Method

    class Lying(Magnitude):
        '''Promises half, prunes a tenth.'''
        name = "lying"
        def attach(self, model, ctx):
            super().attach(model, ctx._replace(cell=ctx.cell.model_copy(update={"sparsity": 0.1})))

    class Diverging(Dense):
        '''Its loss is NaN from the fourth update on.'''
        name = "diverging"
        n = 0
        def loss(self, model, inputs, outputs):
            self.n += 1
            return outputs.loss * (float("nan") if self.n >= 4 else 1.0)

    class Hanging(Magnitude):
        '''Never comes back.'''
        name = "hanging"
        def attach(self, model, ctx):
            print("about to hang", flush=True)
            time.sleep(600)

    class Dying(Magnitude):
        '''Is killed.'''
        name = "dying"
        def attach(self, model, ctx):
            print("about to die", flush=True)
            answers = max(  # while it tells its driver something
                int(fd)
                for fd in os.listdir("/proc/self/fd")
                if "pipe:" in os.path.realpath(f"/proc/self/fd/{fd}")
                and os.lstat(f"/proc/self/fd/{fd}").st_mode & 0o200
            )
            os.write(answers, b'{"record": "{')
            os.kill(os.getpid(), 9)

    class Half(Magnitude):
        '''A method of another package: prunes like magnitude.'''
        name = "half"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder to run in, with these methods installed."""
    monkeypatch.setenv("PYTHONPATH", helpers.installed(tmp_path / "site", METHODS))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    registry._entries.cache_clear()
    yield tmp_path
    registry._entries.cache_clear()


@pytest.fixture
def sparsebench(tmp_path, monkeypatch, capsys):
    """Runs a command in this process; returns (code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        if arguments[0] in ("run", "plan", "report"):
            arguments += ("--results", "results", "--reports", "reports")
        if arguments[0] == "run" and "--timeout" not in arguments:
            arguments += ("--timeout", "3600")  # the tiny tasks' own is for a machine at rest
        return main.main(arguments), *capsys.readouterr()

    return run


SMALL = ("--set", "budget.steps=6", "budget.batch=4")


def errors(folder):
    found = (folder / "results").rglob("*.failed.json")
    records = [json.loads(path.read_text()) for path in found]
    return {r["cell"]["method"]: r["error"] for r in records}


def test_tiny_suite_from_run_to_report(tmp_path, capsys):
    command = ["run", "--suite", "tiny", "--timeout", "3600", "--method", "pst", "magnitude"]
    command += [*SMALL, "--results", str(tmp_path / "results")]
    command += ["--reports", str(tmp_path / "reports")]
    program = [sys.executable, "-m", "bench"]
    first = subprocess.run([*program, *command], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "3 of 3 cells done" in first.stdout
    records, problems = Store(tmp_path / "results").records()
    assert problems == []
    by_method = {r.cell.method: r for r in records}
    assert set(by_method) == {"dense", "magnitude", "pst"}
    assert by_method["magnitude"].cost.dense_s == by_method["dense"].cost.train_s
    assert by_method["magnitude"].params.trainable.body == 0
    assert by_method["pst"].sparsity.overall == pytest.approx(0.5, abs=1e-3)
    assert by_method["dense"].data == by_method["pst"].data
    assert all(len(r.scores.items) == r.scores.n == 300 for r in records)
    page = (tmp_path / "reports" / "other.md").read_text()
    assert "| magnitude" in page
    text = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    assert str(tmp_path) not in text

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*.json")}
    assert main.main(command) == 0
    assert capsys.readouterr().out.splitlines()[:8] == first.stdout.splitlines()[:8]
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*.json")}


@pytest.mark.faults
def test_methods_of_another_package_and_every_way_to_fail(package, sparsebench):
    _, listed, _ = sparsebench("list", "methods")
    assert re.search("half +A method of another package: prunes like magnitude.", listed)

    bad = ("lying", "diverging", "dying")
    wanted = ("--method", *bad, "half", "--jobs", "2")
    assert sparsebench("run", "--suite", "tiny", *wanted, *SMALL)[0] == 1
    only = ("--method", "hanging", "--timeout", "5")
    assert sparsebench("run", "--suite", "tiny", *only, *SMALL)[0] == 1
    found = errors(package)
    assert {name: error["kind"] for name, error in found.items()} == {
        "lying": "contract",
        "diverging": "nan",
        "hanging": "timeout",
        "dying": "killed",
    }
    assert "counted sparsity 0.09" in found["lying"]["message"]
    assert found["diverging"]["message"] == "the loss is not finite at step 4"
    assert found["hanging"]["message"] == "stopped after 5 s"
    assert "about to die" in found["dying"]["log_tail"]
    assert "SIGKILL" in found["dying"]["message"]
    # The innocent cells are there.
    records, _ = Store(package / "results").records()
    assert {r.cell.method for r in records} == {"dense", "half"}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def descendants(pid):
    """The processes below this one, and below those."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(p) for p in file.read().split()]
    except OSError:  # gone in the meantime
        return []
    return found + [p for child in found for p in descendants(child)]


def cells_of(pid):
    """The processes of a driver's or worker's cells: each leads a session of its own."""
    return [p for p in descendants(pid) if alive(p) and os.getsid(p) == p]


@pytest.mark.faults
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_driver_that_is_stopped_takes_its_cells_along(package):
    """As Ctrl-C does; test_faults.py kills drivers."""
    command = [sys.executable, "-m", "bench", "run", "--suite", "tiny", "--method", "hanging"]
    command += [
        "--results",
        str(package / "results"),
        "--reports",
        str(package / "reports"),
        *SMALL,
    ]
    driver = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=package,
        # Where tests run in the background, Ctrl-C is ignored and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], os.getcwd()])},
    )  # fmt: skip
    logs = package / ".sparsebench" / "logs"
    deadline = time.monotonic() + 900  # on a busy machine a start alone may take minutes
    while not any("about to hang" in p.read_text() for p in logs.rglob("*.log")):
        assert time.monotonic() < deadline, "the cell never started"
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.2)
    children = descendants(driver.pid)
    assert cells_of(driver.pid)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=300)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a cell outlived its driver"
        time.sleep(0.1)
    assert driver.returncode == 130
    assert "finished cells are kept" in err
    # What was finished before is kept.
    assert [r.cell.method for r in Store(package / "results").records()[0]] == ["dense"]


def test_lost_dense_weights_are_made_again_for_the_cells_that_start_from_them(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folders = ("--results", str(tmp_path / "r"), "--reports", str(tmp_path / "p"))
    run = ["run", "--suite", "tiny", *SMALL, *folders, "--method"]
    assert main.main([*run, "dense"]) == 0
    (dense,) = (tmp_path / "r").rglob("seed1.json")
    before = dense.read_bytes()
    assert main.main([*run, "magnitude"]) == 0
    (first,) = set((tmp_path / "r").rglob("seed1.json")) - {dense}
    scores = Store(tmp_path / "r").load(first).scores
    first.unlink()
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "other"))
    assert main.main([*run, "magnitude"]) == 0
    assert Store(tmp_path / "r").load(first).scores == scores
    assert dense.read_bytes() == before
