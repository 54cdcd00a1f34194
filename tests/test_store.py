import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from bench.api import BenchError, Cell
from bench.core.files import write_atomic
from bench.core.overrides import Overrides
from bench.core.pattern import Pattern
from bench.core.record import parse
from bench.core.record_parts import Versions
from bench.core.store import Store, path_of
from tests.samples import record, versions

VERSIONS = versions(record().cell)


def test_path_is_the_documented_one():
    cell = Cell(
        task="glue/rte", model="minilm-l6", method="pst", pattern="unstructured", sparsity=0.9
    )
    assert str(path_of(cell)) == "glue.rte/minilm-l6/pst/unstructured-0.90/seed1.json"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pattern": Pattern("2:4"), "sparsity": 0.5}, "2of4-0.50"),
        ({"pattern": Pattern("block:16x16"), "sparsity": 0.875}, "block-16x16-0.875"),
        ({"pattern": Pattern("heads+neurons"), "sparsity": 0.25}, "heads-neurons-0.25"),
    ],
)
def test_patterns_in_paths(change, part):
    assert path_of(record().cell.model_copy(update=change)).parts[3] == part


def test_a_changed_budget_or_parameter_moves_the_path():
    cell = record().cell
    variants = [
        cell,
        cell.model_copy(update={"budget": "full"}),
        cell.model_copy(update={"overrides": Overrides.of({"lr": 1e-3})}),
        cell.model_copy(update={"overrides": Overrides.of({"lr": 2e-3})}),
    ]
    assert len({path_of(v) for v in variants}) == len(variants)


@pytest.mark.parametrize("field", ["task", "model", "method", "budget"])
@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a\0b", "x" * 300, "", "a/../b", "a/b/c", "-x", "a b", "x\n"]
)
def test_names_that_are_none_are_refused(field, name):
    fields = record().cell.model_dump() | {field: name}
    with pytest.raises(ValidationError):
        Cell(**fields)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan"), float("inf"), 0.123456])
def test_impossible_sparsities_are_refused(sparsity):
    with pytest.raises(ValidationError):
        Cell(**(record().cell.model_dump() | {"sparsity": sparsity}))


def test_put_then_get(tmp_path):
    store = Store(tmp_path)
    store.put(record())
    assert store.get(record().cell) == record()
    assert store.state(record().cell, VERSIONS) == "done"
    assert store.state(record().cell, Versions(method=2, task=1)) == "stale"
    assert store.records() == ([record()], [])
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["seed1.json"]


def test_text_is_six_digits_one_newline_and_ordered():
    text = record(value=1 / 3).to_json()
    assert text.endswith("}\n")
    tree = json.loads(text)
    assert tree["scores"]["value"] == 0.333333
    assert list(tree)[:6] == ["schema", "cell", "key", "versions", "status", "budget"]


def test_failure_is_beside_and_goes_with_the_next_success(tmp_path):
    store = Store(tmp_path)
    store.put(record(failed=True))
    assert store.state(record().cell, VERSIONS) == "failed"
    assert store.failed_path(record().cell).name == "seed1.failed.json"
    store.put(record())
    assert not store.failed_path(record().cell).exists()


def test_a_failure_that_becomes_a_record_meanwhile_is_no_error(tmp_path, monkeypatch):
    """Another driver finishes between the look at the folder and the look at the file."""
    store = Store(tmp_path)
    failed = store.put(record(failed=True))
    load = store.load

    def late(path):
        if path == failed:
            Store(tmp_path).put(record())
        return load(path)

    monkeypatch.setattr(store, "load", late)
    assert store.get(record().cell) == record()
    failed = store.put(record(failed=True))
    store.path(record().cell).unlink()
    assert store.records() == ([], [])


def test_a_failure_leaves_the_old_success_alone(tmp_path):
    store = Store(tmp_path)
    store.put(record())
    store.put(record(failed=True))
    assert store.get(record().cell).status == "done"


def _nan(tree):
    return json.dumps(tree).replace('"value": 0.85', '"value": NaN')


@pytest.mark.faults
@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda t: json.dumps(t)[:-40], "corrupt record"),
        (lambda t: "", "corrupt record"),
        (_nan, "NaN is not a JSON number"),
        (lambda t: json.dumps(t | {"surprise": 1}), "surprise"),
        (lambda t: json.dumps(t | {"key": "0" * 64}), "key is not the sha256"),
        (lambda t: json.dumps({k: v for k, v in t.items() if k != "scores"}), "needs scores"),
        (lambda t: "[" * 100_000, "corrupt record"),
        (lambda t: json.dumps(t | {"schema": 2}), "schema"),
        (lambda t: json.dumps(t | {"cell": t["cell"] | {"overrides": 5}}), "corrupt record"),
        (lambda t: json.dumps(t | {"cell": t["cell"] | {"overrides": [5]}}), "corrupt record"),
        (lambda t: json.dumps(t | {"cell": t["cell"] | {"pattern": 5}}), "corrupt record"),
    ],
)
def test_corrupt_records_are_named_and_set_aside(tmp_path, break_it, why):
    store = Store(tmp_path)
    path = store.put(record())
    broken = break_it(json.loads(path.read_text()))
    path.write_text(broken)
    assert store.state(record().cell, VERSIONS) == "corrupt"
    with pytest.raises(BenchError, match=why) as error:
        store.load(path)
    assert "seed1.json" in str(error.value)
    found, problems = store.records()
    assert found == []
    assert len(problems) == 1
    store.put(record())
    assert store.get(record().cell) == record()
    assert path.with_suffix(".json.corrupt").read_text() == broken


@pytest.mark.faults
def test_a_record_in_another_cells_place_is_corrupt(tmp_path):
    store = Store(tmp_path)
    path = store.put(record())
    other = path.with_name("seed7.json")
    path.rename(other)
    with pytest.raises(BenchError, match="its cell belongs to"):
        store.load(other)


def test_parse_refuses_bytes_that_are_no_text():
    with pytest.raises(BenchError, match="corrupt record"):
        parse(b"\xff\xfe\x00", "x.json")


@pytest.mark.faults
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    store = Store(tmp_path)
    path = store.put(record())
    before = path.read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match="cannot write .*seed1.json: No space left") as error:
        store.put(record(value=0.1))
    assert error.value.kind == "disk"
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["seed1.json"]


WRITER = """
import sys
from pathlib import Path
from bench.core.store import Store
from tests.samples import record
store, i = Store(Path(sys.argv[1])), 0
while True:
    i += 1
    store.put(record(value=i / 2**30, items="01" * 20_000))
    if i == 1:
        print("ready", flush=True)
"""


@pytest.mark.faults
def test_kill_9_never_leaves_a_torn_record(tmp_path):
    store = Store(tmp_path)
    path = store.path(record().cell)
    draw = random.Random(0)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        time.sleep(draw.random() * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        assert store.load(path).status == "done"
        assert store.records()[1] == []


def test_write_atomic_makes_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
