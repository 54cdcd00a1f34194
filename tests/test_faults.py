"""Processes killed, memory and disks that run out: nothing torn, nothing lost.

Every fault is a real one: signals, limits of the operating system, damaged bytes. What a driver
does with methods that hang, die, lie or diverge stands in test_run.py, records in test_store.py,
lost machines in test_dask.py.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.api import BenchError
from bench.core.record import parse
from bench.core.store import Store
from bench.engine import isolate
from bench.planning import plan
from bench.planning.job import Job
from bench.reporting import leaderboard
from tests import helpers
from tests.samples import record
from tests.test_run import alive, cells_of

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc"),
]

METHODS = """
    import resource
    from pathlib import Path
    import torch
    from methods.dense import Dense

    def limit(extra):
        '''Lets the process grow by so many bytes from here.'''
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + extra
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    class Wide(Dense):
        '''Needs 256 MB for every sequence of a batch.'''
        name = "wide"
        def attach(self, model, ctx):
            limit(800 * 2**20)
        def loss(self, model, inputs, outputs):
            torch.empty(len(inputs["labels"]) * 2**28, dtype=torch.uint8)
            return outputs.loss

    class Huge(Wide):
        '''Needs more than there is for a single one.'''
        name = "huge"
        def loss(self, model, inputs, outputs):
            torch.empty(2**30, dtype=torch.uint8)
            return outputs.loss

    class Bulky(Dense):
        '''Its model does not fit on the disk.'''
        name = "bulky"
        def attach(self, model, ctx):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
"""
PATIENCE = 900  # seconds; on a busy machine a start alone may take minutes


@pytest.fixture
def environment(tmp_path):
    """Of a driver: these methods installed, a cache of its own, a checkpoint at every step."""
    return os.environ | {
        "PYTHONPATH": helpers.installed(tmp_path / "site", METHODS),
        "SPARSEBENCH_CACHE": str(tmp_path / "cache"),
        "SPARSEBENCH_CHECKPOINT_S": "0",
    }


@pytest.fixture(autouse=True)
def no_driver_is_left():
    yield
    for running in started:
        running.kill()
        running.wait()
    started.clear()


started = []


def driver(folder, environment, *arguments):
    command = [sys.executable, "-m", "bench", "run", "--suite", "tiny", *arguments]
    command += ["--results", str(folder / "results"), "--reports", str(folder / "reports")]
    command += ["--timeout", str(PATIENCE)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    return started[-1]


def valid(folder):
    """The done records; every file of the tree must parse and validate."""
    store = Store(folder / "results")
    found, problems = store.records()
    assert problems == []
    files = {p for p in (folder / "results").rglob("*") if p.is_file()}
    assert {p for p in files if not p.name.startswith("seed")} == set()
    return {r.cell.method: r for r in found}


def failures(folder):
    found = [json.loads(p.read_text()) for p in (folder / "results").rglob("*.failed.json")]
    return {f["cell"]["method"]: f["error"] for f in found}


def at_checkpoint(running, cache, step):
    """Waits until a cell has written the checkpoint of that step or a later one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        places = [p.name for p in (Path(cache) / "scratch").glob("*/checkpoint-*")]
        if any(int(name.rpartition("-")[2]) >= step for name in places):
            return
        assert time.monotonic() < deadline, "no checkpoint"
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.005)


def test_a_driver_is_killed_and_the_table_is_the_same(tmp_path, environment):
    long = ("--method", "dense", "--set", "budget.steps=60", "budget.batch=8")
    cache = environment["SPARSEBENCH_CACHE"]
    quiet = tmp_path / "quiet"
    undisturbed = start(helpers.cell("dense", budget__steps=60, budget__batch=8), quiet)

    running = driver(tmp_path, environment, *long)
    at_checkpoint(running, cache, random.randrange(20, 40))
    cells = cells_of(running.pid)
    running.kill()
    running.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in cells):
        assert time.monotonic() < deadline, "a cell outlived its driver"
        time.sleep(0.05)
    left = [p.name for p in (tmp_path / "results").rglob(".*")]
    assert left == [".seed1.lease"]  # of a driver that is no more

    running = driver(tmp_path, environment, *long)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    found = valid(tmp_path)["dense"]
    assert found.env["resumed_at"] >= 20
    assert failures(tmp_path) == {}
    assert list((Path(cache) / "scratch").iterdir()) == []

    finish(undisturbed)
    other = valid(quiet)["dense"]
    for part in ("scores", "params", "sparsity", "model"):
        assert getattr(found, part) == getattr(other, part)
    weights = {
        place: next((place / "cache" / "trained").glob("*/model.safetensors")).read_bytes()
        for place in (tmp_path, quiet)
    }
    assert weights[tmp_path] == weights[quiet]


def test_memory_and_disk_that_run_out_cost_their_own_cells_only(tmp_path, environment):
    small = ("--set", "budget.steps=3", "budget.batch=4")
    wanted = ("--method", "bulky", "huge", "wide", "--jobs", "2")
    running = driver(tmp_path, environment, *wanted, *small)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, err
    found = valid(tmp_path)
    assert set(found) == {"dense", "wide"}
    assert found["wide"].env["accumulate"] == 2
    assert "accumulate" not in found["dense"].env
    failed = failures(tmp_path)
    assert {name: error["kind"] for name, error in failed.items()} == {
        "huge": "oom",
        "bulky": "disk",
    }
    assert "with batches in two pieces" in failed["huge"]["message"]


def test_a_cell_that_is_killed_with_all_others_says_so(tmp_path):
    """Its own thread alone waits for the process, whoever kills it: so the exit code is known."""
    job = Job.resolve(helpers.cell("dense", budget__steps=4000, budget__batch=8))
    trains = threading.Event()

    def watch(phase, *_):
        if phase == "train":
            trains.set()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(isolate.run_isolated, job, 3600, tmp_path / "log", watch)
        assert trains.wait(600)
        isolate.kill_all()
        error = ended.result(60).error
    assert (error.kind, error.message) == ("killed", "the cell's process was ended by SIGKILL")


# Cells in processes that are forked off one that has torch imported already: a start costs nothing,
# so that there is time for many kills.

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["bench.engine.preload", "tests.helpers"])
KILLS = 6


def cells():
    budget = {"budget__steps": 20, "budget__batch": 8}
    return [helpers.cell(name, **budget) for name in ("dense", "pst", "magnitude", "gmp")]


def child(cell, place):
    """What a cell's process and its driver do: run it, write its record."""
    import torch

    from bench.pipeline import run

    torch.set_num_threads(1)
    os.environ |= {"SPARSEBENCH_CACHE": str(place / "cache"), "SPARSEBENCH_CHECKPOINT_S": "0"}
    Store(place / "results").put(run.run_cell(Job.resolve(cell), lambda *_: None))


def start(cell, place):
    process = FORKS.Process(target=child, args=(cell, place))
    process.start()
    return process


def finish(process):
    process.join(PATIENCE)
    assert process.exitcode == 0
    process.close()


def table(place):
    """The final table of a tree in which every file must be valid, times and memory apart."""
    records, problems = Store(place / "results").records()
    assert problems == []
    alike = {"cost": record().cost, "env": {}, "speed": []}
    found = [r.model_copy(update=alike) for r in records]
    return leaderboard.table(found), [(r.cell, r.scores, r.params, r.sparsity) for r in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(a tree with results and cache, seconds that a cell took)."""
    place = tmp_path_factory.mktemp("undisturbed")
    begin = time.monotonic()
    for cell in cells():
        finish(start(cell, place))
    return place, (time.monotonic() - begin) / len(cells())


def test_cells_killed_at_random_moments_end_as_if_nothing_had_happened(undisturbed, tmp_path):
    expected, seconds = table(undisturbed[0]), undisturbed[1]
    draw, kills, turn = random.Random(), 0, 0
    while kills < KILLS:
        turn += 1
        place = tmp_path / str(turn)
        for cell in cells():
            store = Store(place / "results")
            while store.state(cell, Job.resolve(cell).versions) != "done":
                process = start(cell, place)
                process.join(draw.uniform(0, seconds))
                if process.exitcode is None:
                    process.kill()
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL)
                kills += process.exitcode != 0
                assert store.records()[1] == []
        assert table(place) == expected
        assert [p.name for p in (place / "cache" / "trained").glob("[!.]*")] == [
            p.name for p in (undisturbed[0] / "cache" / "trained").glob("[!.]*")
        ]


def test_damaged_records_are_left_out_and_made_again(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path / "results")
    _, pst, magnitude, gmp = cells()
    path = store.path(pst)
    path.write_bytes(path.read_bytes()[:-100])  # truncated
    store.path(gmp).write_bytes(store.path(magnitude).read_bytes())  # foreign
    text = store.path(magnitude).read_text()
    store.path(magnitude).write_text(text.replace('"nonzero": ', '"nonzero": -'))  # corrupt
    records, problems = store.records()
    assert [r.cell.method for r in records] == ["dense"]
    assert len(problems) == 3
    planned = {
        item.job.cell.method: item
        for item in plan.plan([Job.resolve(cell) for cell in cells()], store)
    }
    assert [planned[c.method].state for c in cells()] == ["done", *["corrupt"] * 3]
    for item in planned.values():
        if item.todo:
            finish(start(item.job.cell, tmp_path))
    assert table(tmp_path) == table(undisturbed[0])
    assert len(list((tmp_path / "results").rglob("*.corrupt"))) == 3


PUT = """
import sys
from pathlib import Path
from bench.api import BenchError
from bench.core.store import Store
from tests.samples import record
store = Store(Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    try:
        store.put(record(value=0.25, items="01" * 5_000))
    except BenchError as error:
        print(error)
        sys.exit(3)
"""


def test_eight_writers_of_one_cell(tmp_path):
    command = [sys.executable, "-c", PUT, str(tmp_path), "100"]
    writers = [subprocess.Popen(command) for _ in range(8)]
    path = Store(tmp_path).path(record().cell)
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert Store(tmp_path).load(path).status == "done"
        time.sleep(0.005)
    assert [writer.returncode for writer in writers] == [0] * 8
    assert [p.name for p in path.parent.iterdir()] == ["seed1.json"]


def test_a_file_that_may_not_grow_leaves_the_old_record(tmp_path):
    store = Store(tmp_path)
    path = store.put(record(value=0.5))
    before = path.read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    command = [sys.executable, "-c", PUT, str(tmp_path), "1"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 3
    assert f"cannot write {path}: File too large" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["seed1.json"]


def test_damaged_bytes_are_a_record_or_named_never_anything_else():
    text, named = record(items="0110").to_json().encode(), []
    draw = random.Random(0)
    for turn in range(600):
        damaged = bytearray(text)
        if turn % 2:
            del damaged[draw.randrange(len(text)) :]
        else:
            for _ in range(draw.randrange(1, 4)):
                damaged[draw.randrange(len(text))] = draw.randrange(256)
        try:
            parse(bytes(damaged), "here")
        except BenchError as error:
            named.append(str(error))
    assert len(named) > 400
    assert all(line.startswith("here: corrupt record") and "\n" not in line for line in named)
