"""Processes killed, memory and disks that run out: nothing torn, nothing lost (DESIGN §10).

Every fault is a real one: signals, limits of the operating system, damaged bytes. What a driver
does with methods that hang, die, lie or diverge stands in test_run.py, records in test_store.py.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bench.api import BenchError
from bench.record import parse
from bench.store import Store
from tests.samples import record
from tests.test_run import alive, children_of

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
NAMES = ("wide", "huge", "bulky")

PATIENCE = 900  # seconds; on a busy machine a start alone may take minutes


@pytest.fixture
def environment(tmp_path):
    """Of a driver: these methods installed, a cache of its own, a checkpoint at every step."""
    site = tmp_path / "site"
    info = site / "faultymethods-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "faultymethods.py").write_text(textwrap.dedent(METHODS))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faultymethods\nVersion: 1.0\n")
    lines = [f"{name} = faultymethods:{name.capitalize()}" for name in NAMES]
    (info / "entry_points.txt").write_text("[sparsebench.methods]\n" + "\n".join(lines) + "\n")
    path = os.pathsep.join([str(site), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "PYTHONPATH": path,
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


def test_a_cell_and_then_its_driver_are_killed_and_the_table_is_the_same(tmp_path, environment):
    long = ("--method", "dense", "--set", "budget.steps=150", "budget.batch=8")
    draw = random.Random()
    cache = environment["SPARSEBENCH_CACHE"]

    running = driver(tmp_path, environment, *long)
    at_checkpoint(running, cache, draw.randrange(1, 40))
    (cell,) = children_of(running.pid)
    os.kill(cell, signal.SIGKILL)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, err
    assert failures(tmp_path)["dense"]["kind"] == "killed"
    assert valid(tmp_path) == {}

    running = driver(tmp_path, environment, *long)
    at_checkpoint(running, cache, draw.randrange(50, 100))
    cells = children_of(running.pid)
    running.kill()
    running.communicate(timeout=PATIENCE)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in cells):
        assert time.monotonic() < deadline, "a cell outlived its driver"
        time.sleep(0.05)
    left = [p.name for p in (tmp_path / "results").rglob(".*")]
    assert left == [".seed1.claim"]  # of a driver that is no more

    running = driver(tmp_path, environment, *long)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    found = valid(tmp_path)["dense"]
    assert found.env["resumed_at"] >= 50
    assert failures(tmp_path) == {}
    assert list((Path(cache) / "scratch").iterdir()) == []

    quiet = tmp_path / "undisturbed"
    quiet.mkdir()
    running = driver(quiet, environment | {"SPARSEBENCH_CACHE": str(quiet / "cache")}, *long)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    undisturbed = valid(quiet)["dense"]
    assert found.scores == undisturbed.scores
    assert (found.params, found.sparsity, found.model) == (
        undisturbed.params,
        undisturbed.sparsity,
        undisturbed.model,
    )
    weights = {
        place: next((place / "cache" / "trained").glob("*/model.safetensors")).read_bytes()
        for place in (tmp_path, quiet)
    }
    assert weights[tmp_path] == weights[quiet]


def test_memory_and_disk_that_run_out_cost_their_own_cells_only(tmp_path, environment):
    small = ("--set", "budget.steps=3", "budget.batch=4")
    running = driver(tmp_path, environment, "--method", "bulky", "huge", "wide", *small)
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


PUT = """
import sys
from pathlib import Path
from bench.api import BenchError
from bench.store import Store
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
