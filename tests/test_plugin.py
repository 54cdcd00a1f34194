"""A package with a method of its own, installed beside the project, breaks no test of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import helpers

ROOT = Path(__file__).parent.parent
TEMPLATE = (ROOT / "methods" / "TEMPLATE.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a machine where the template is a package, registered as pip would."""
    site = tmp_path_factory.mktemp("site")
    info = site / "maskpackage-1.0.dist-info"
    info.mkdir()
    (site / "maskpackage.py").write_text(TEMPLATE.replace("fixed-mask", "foreign-mask"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: maskpackage\nVersion: 1.0\n")
    lines = "[sparsebench.methods]\nforeign-mask = maskpackage:FixedMask\n"
    (info / "entry_points.txt").write_text(lines)
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(env, *arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


def test_it_is_listed_with_its_parameters(installed):
    out = run(installed, "bench", "list", "methods", "foreign-mask").stdout
    assert "magnitude mask, then fine-tuning" in out
    assert "learning rate at hidden size 768" in out


PAGES = "(test_readme or test_documents) and not template"
METHODS = "(test_contract or test_parameters) and foreign and (tiny-bert or not tiny)"


def test_the_tests_that_list_methods_pass_with_it(installed):
    names = ("contract", "parameters", "readme", "documents")
    files = [f"tests/test_{name}.py" for name in names]
    result = run(installed, "pytest", "-p", "no:cacheprovider", "-vv", "-k",
                 f"{PAGES} or {METHODS}", *files)  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    for name in names:  # none of them was left out
        assert re.search(rf"test_{name}.py::.* PASSED", result.stdout)


def test_helpers_find_no_other_name():
    """`foreign-mask` is nobody's built-in name."""
    assert "foreign-mask" not in helpers.registry.names("method")
