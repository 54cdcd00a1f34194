"""The plan of the house: what may import what. Floors and circles are held by `make lint`."""

import subprocess
import sys

import grimp
import pytest


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("bench", "methods", "tasks")


def test_methods_never_import_each_other(graph):
    """What two methods share lives in methods/shared; tiny tasks are twins of others by design."""
    files = {name for name in graph.find_children("methods") if name != "methods.shared"}
    assert "methods.pst" in files
    for name in files:
        assert not graph.find_modules_directly_imported_by(name) & files, name


@pytest.mark.parametrize("family", ["methods", "tasks"])
def test_the_engine_knows_no_method_and_no_task_by_name(graph, family):
    for name in graph.modules:
        if name.startswith("bench"):
            found = graph.find_modules_directly_imported_by(name)
            assert not any(other.startswith(f"{family}.") for other in found), name


def test_values_plans_and_reports_load_without_torch():
    """What `plan` and the tables need must start fast."""
    script = (
        "import sys, pkgutil, importlib, bench.core, bench.planning, bench.review\n"
        "for package in (bench.core, bench.planning, bench.review):\n"
        "    for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
