"""A scheduler and two workers on loopback: machines that come and go."""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from bench.cli import main
from bench.cli.flags import OWN
from bench.core.store import Store
from bench.engine import dask_engine, dask_worker, isolate, local
from bench.planning.job import Job
from tests import helpers
from tests.helpers import trained_dir
from tests.samples import record
from tests.test_run import alive, cells_of, descendants

pytest.importorskip("distributed", reason="needs sparsebench[cluster]")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc"),
]

PATIENCE = 900  # seconds; on a busy machine a start alone may take minutes
UNHURRIED = ("--timeout", "3600")  # of a cell; the tiny tasks' own is for a machine at rest
LONG = ("budget.steps=4000", "budget.batch=8")
SHORT = ("budget.steps=30", "budget.batch=8")


class Machines:
    """Processes with a folder and a cache each, as machines that share nothing."""

    def __init__(self, place):
        self.place = place
        self.started = []

    def start(self, name, *command):
        folder = self.place / name
        folder.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "SPARSEBENCH_CACHE": str(folder / "cache")}
        with open(folder / "err", "w") as err:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=err
            )
        self.started.append(process)
        return process

    def scheduler(self):
        host = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        command = [sys.executable, "-m", "dask", "scheduler", *host]
        process = self.start("scheduler", *command)
        self.address = self.told("scheduler", "Scheduler at:").split()[-1]
        return process

    def worker(self, name):
        return self.start(name, sys.executable, "-m", "bench", "worker", self.address)

    def driver(self, *more):
        command = [sys.executable, "-m", "bench", "run", "--suite", "tiny", *more, *UNHURRIED]
        return self.start("driver", *command, "--engine", "dask", "--scheduler", self.address)

    def err(self, name):
        return (self.place / name / "err").read_text()

    def told(self, name, words):
        """The first line on a machine's standard error that has these words."""
        return self.until(lambda: next((x for x in self.err(name).splitlines() if words in x), ""))

    def until(self, something):
        deadline = time.monotonic() + PATIENCE
        while not (found := something()):
            assert time.monotonic() < deadline, self.everything()
            time.sleep(0.1)
        return found

    def training(self, *names):
        """(machine, its cell's process), as soon as one of them trains."""

        def look():
            for name, process in names:
                trains = any((self.place / name).glob("cache/scratch/*/checkpoint-*"))
                if trains and (cells := cells_of(process.pid)):
                    return name, process, cells
            return None

        return self.until(look)

    def finished(self, process):
        process.wait(PATIENCE)
        return process.returncode

    def everything(self):
        return "\n".join(f"{p.name}: {(p / 'err').read_text()}" for p in self.place.iterdir())

    def records(self):
        found, problems = Store(self.place / "driver" / OWN).records()
        assert problems == []
        return {r.cell.method: r for r in found}


@pytest.fixture
def machines(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CHECKPOINT_S", "0.2")
    made = Machines(tmp_path)
    yield made
    for process in made.started:
        for pid in [*descendants(process.pid), process.pid] if process.poll() is None else []:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def gone(machines, pids):
    machines.until(lambda: not any(alive(pid) for pid in pids))


def test_a_lost_worker_then_a_lost_scheduler_then_all_is_done(machines):
    machines.scheduler()
    workers = [(name, machines.worker(name)) for name in ("one", "two")]
    driver = machines.driver("--method", "dense", "pst", "--set", *SHORT)
    name, lost, cells = machines.training(*workers)
    lost.kill()
    gone(machines, cells)
    assert machines.finished(driver) == 0, machines.everything()
    assert set(machines.records()) == {"dense", "pst"}

    # What starts from dense weights makes them where it runs; the dense record stays as it is.
    (rest,) = [other for other, _ in workers if other != name]
    before = machines.records()["dense"]
    weights = machines.place / rest / "cache" / "trained" / trained_dir(before.cell).name
    shutil.rmtree(weights, ignore_errors=True)
    driver = machines.driver("--method", "magnitude", "--set", *SHORT)
    assert machines.finished(driver) == 0, machines.everything()
    found = machines.records()
    assert found["dense"] == before
    assert weights.is_dir()

    # The table is that of one machine.
    assert set(found) == {"dense", "pst", "magnitude"}
    (share,) = local.shares(1)  # the worker's number of threads
    for there in (found[name] for name in ("dense", "pst", "magnitude")):
        job, log = Job.resolve(there.cell), machines.place / "log"
        here = isolate.run_isolated(job, PATIENCE, log, helpers.quiet, share)
        assert (there.scores, there.params) == (here.scores, here.params)


def test_a_lost_driver_and_a_lost_scheduler_end_the_cells(machines):
    scheduler = machines.scheduler()
    worker = machines.worker("one")
    driver = machines.driver("--method", "dense", "--set", *LONG)
    _, _, cells = machines.training(("one", worker))
    driver.kill()
    driver.wait()  # until then it counts as alive, and its lease with it
    gone(machines, cells)
    assert worker.poll() is None

    driver = machines.driver("--method", "dense", "--set", *LONG)
    _, _, cells = machines.training(("one", worker))
    scheduler.kill()
    assert machines.finished(driver) == 2
    (line,) = machines.err("driver").splitlines()[-1:]
    assert line.startswith(f"sparsebench: the scheduler at {machines.address} is lost")
    assert "Traceback" not in machines.err("driver")
    left = [p for p in (machines.place / "driver" / OWN).rglob("*") if p.is_file()]
    assert left == []  # no claim, no record
    gone(machines, cells)
    assert machines.finished(worker) == 1


# Without any machine.


def test_workers_stay_on_loopback_unless_told(capsys):
    assert main.main(["worker", "tcp://192.0.2.1:8786"]) == 2
    assert "--listen HOST" in capsys.readouterr().err
    assert main.main(["worker", "nonsense", "--listen", "127.0.0.1"]) == 2
    assert "write it as tcp://host:8786" in capsys.readouterr().err


def test_no_scheduler_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_engine, "CONNECT_S", 0.5)
    monkeypatch.chdir(tmp_path)
    run = ["run", "--suite", "tiny", "--method", "dense", "--engine", "dask"]
    assert main.main(run) == 2
    assert "needs --scheduler" in capsys.readouterr().err
    assert main.main([*run, "--scheduler", "tcp://127.0.0.1:1"]) == 2
    told, line = capsys.readouterr().err.splitlines()
    assert told.startswith("sparsebench: 1 of 1 cells to run")
    assert line.startswith("sparsebench: no scheduler answers at tcp://127.0.0.1:1")


def test_certificates_are_passed_on():
    made = dask_worker.security_of("ca.pem", "c.pem", "k.pem")
    assert made.require_encryption
    for role in ("client", "worker"):
        tls = made.get_tls_config_for_role(role)
        assert (tls["ca_file"], tls["cert"], tls["key"]) == ("ca.pem", "c.pem", "k.pem")
    assert not dask_worker.security_of(None, None, None).require_encryption


def test_answers_that_are_no_record_of_the_cell_are_failures():
    engine = object.__new__(dask_engine.Dask)
    wanted = Job.resolve(helpers.cell("pst", seed=2))
    engine.address = "tcp://nowhere"

    def kind(result):
        done = SimpleNamespace(status="finished", result=lambda: result)
        return engine._record(wanted, done).error.kind

    assert kind(record().model_dump(mode="json")) == "contract"  # of another cell
    assert kind({"status": "done"}) == "contract"
    raised = SimpleNamespace(status="error", exception=lambda: KeyError("method"))
    assert engine._record(wanted, raised).error.kind == "error"
