"""Pages for readers: every file, module and command that they name exists."""

import dataclasses
import re
import tomllib
import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from bench.core.record import Record

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "*/*.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
IGNORED = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
SUFFIXES = "py|md|toml|json|csv|css|js|j2|yml|yaml|cff|svg"
PLACEHOLDER = re.compile(r"[*<>{}…$]|\.\.\.")


def without_blocks(text):
    """A page without its fenced blocks, whose brackets are no links."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


def linked(text):
    """The relative files that links and images lead to."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    targets = [target.partition("#")[0] for target in targets if "://" not in target]
    return [target for target in targets if target and not target.startswith("mailto:")]


def named(text):
    """Repository paths in backticks: below a folder of the root, or with a source's suffix."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"methods", "tasks"}
    found = []
    for code in re.findall(r"`([^`\n]+)`", without_blocks(text)):
        path = code.partition("::")[0]
        if PLACEHOLDER.search(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", path):
            continue
        first = path.partition("/")[0]
        if first in IGNORED or path.rstrip("/") in IGNORED:
            continue
        of_folder = first in folders and "/" in path
        of_source = "/" in path and re.search(rf"\.({SUFFIXES})$", path)
        if of_folder or of_source or re.fullmatch(r"[A-Z]+\.(md|cff)", path):
            found.append(path)
    return found


def missing(text, folder):
    """What a page in `folder` names that is not there."""

    def there(path, *bases):
        return any((base / path).exists() for base in bases)

    absent = [path for path in linked(text) if not there(path, folder)]
    absent += [path for path in named(text) if not there(path, ROOT, folder)]
    for module in re.findall(r"python -m ((?:bench|tests)(?:\.\w+)+)", text):
        if not there(f"{module.replace('.', '/')}.py", ROOT):
            absent.append(module)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    wanted = re.findall(r"(?:^ *|`)make ([a-z-]+)", text, re.M)
    return absent + [f"make {target}" for target in wanted if target not in targets]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    path = ROOT / page
    assert missing(path.read_text(encoding="utf-8"), path.parent) == []


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("see [this](nowhere.md)", ["nowhere.md"]),
        ("see [this](nowhere.md#part) and [that](https://example.org/nowhere)", ["nowhere.md"]),
        ("see ![a figure](reports/figures/nothing.svg)", ["reports/figures/nothing.svg"]),
        ("`bench/nothing.py`, `bench/core/cell.py`", ["bench/nothing.py"]),
        ("`core/nothing.py`, `tests/test_masks.py::test_nothing`", ["core/nothing.py"]),
        ("`methods/nothing/`, `methods/shared/`", ["methods/nothing/"]),
        ("`NOTHING.md`, `README.md`", ["NOTHING.md"]),
        ("`python -m tests.benchmarks.nothing`", ["tests.benchmarks.nothing"]),
        ("```\nmake nothing\nmake test\n```", ["make nothing"]),
        ("`bench/*.py`, `results/<task>/seed1.json`, `results/…/seed1.json`, `glue/rte`", []),
        ("`.sparsebench/logs`, `reports/index.html`, `JOBS`, `config.json`", []),
        ("```\n[a](b)\n```", []),
    ],
)
def test_what_is_missing_is_named(text, absent):
    assert missing(text, ROOT) == absent


def test_a_page_may_name_files_from_its_own_folder():
    assert missing("`core/cell.py`, [cell](core/cell.py)", ROOT / "bench") == []
    assert missing("[cell](bench/core/cell.py)", ROOT / "bench") == ["bench/core/cell.py"]


MAP = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")


def rows(heading):
    """The cells of the first table below a heading of bench/README.md, a list a row."""
    section = MAP.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_map_holds_every_package_and_module():
    packages = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")}
    packages |= {path.stem for path in (ROOT / "bench").glob("[!_]*.py")}
    listed = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows("Packages")}
    assert set(listed) == packages
    wrong = {}
    for package, modules in listed.items():
        present = {path.stem for path in (ROOT / "bench" / package).glob("[!_]*.py")}
        if add := present - modules:
            wrong[package, "add"] = add
        if drop := modules - present:
            wrong[package, "drop"] = drop
    assert wrong == {}


WRAPPERS = (types.UnionType, typing.Union, typing.Annotated, list)


def leaves(kind, prefix=""):
    """Dotted names of all fields of a record, down to what is no part of its own."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {f.alias or name: f.annotation for name, f in kind.model_fields.items()}
    else:
        fields = typing.get_type_hints(kind)
    for name, annotation in fields.items():
        while typing.get_origin(annotation) in WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        parts = isinstance(annotation, type) and (
            issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
        )
        if parts and name not in ("overrides", "pattern"):  # flat in JSON
            yield from leaves(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_schema_holds_every_field_of_a_record():
    listed = []
    for names, _, _ in rows("The record"):
        for name in re.findall(r"`([^`]+)`", names.replace("[]", "")):
            head = listed[-1].rpartition(".")[0] if name.startswith(".") else ""
            listed.append(head + name)
    assert sorted(listed) == sorted(leaves(Record))


def test_metadata_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == project["version"]
    assert re.search(r"^license: (.*)$", citation, re.M)[1] == project["license"]
    date = re.search(r'^date-released: "(.*)"$', citation, re.M)[1]
    assert f"## [{project['version']}] - {date}\n" in changes
    assert "## [Unreleased]\n" in changes
    assert "Apache License" in (ROOT / "LICENSE").read_text()
