"""What the front page shows must work, and its generated table must be current."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.cli.listing import methods_table
from bench.cli.main import parser
from bench.core.store import Store
from bench.core.tuning import Choices
from bench.planning import registry
from bench.reporting.front import BLOCK, front, renewed
from methods.shared.masks import pruned_count
from methods.TEMPLATE import FixedMask
from tests import helpers
from tests.samples import record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_the_template_trains_and_keeps_its_zeros(model, monkeypatch):
    original = registry.method
    monkeypatch.setattr(
        registry, "method", lambda n: FixedMask if n == FixedMask.name else original(n)
    )
    steps = {"budget__steps": 4, "budget__batch": 4}
    fit = helpers.fit_cell(helpers.cell(FixedMask.name, model, 0.7, **steps))
    sizes = [t.weight.numel() for t in helpers.targets.prunable(fit.model)]
    assert list(helpers.zeros(fit.model).values()) == [pruned_count(n, 0.7) for n in sizes]


def block(page, name):
    """What stands between a page's markers of that name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.S)
    return shown.strip()


def test_the_table_of_methods_is_generated():
    shown = block("methods/README.md", "methods")
    assert shown == methods_table(), "sparsebench list methods --markdown"


def test_the_main_table_is_that_of_the_committed_records():
    records, problems = Store(ROOT / "results").records()
    assert problems == []
    assert block("README.md", "board") == front(records, Choices(ROOT / "results")), "make report"


def test_the_table_of_tasks_has_them_all():
    page = (ROOT / "tasks" / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| task \|.*?\n\n", page, re.M | re.S)[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    patterns = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    for task in registry.builtin("task"):
        assert any(fnmatch(task, pattern) for pattern in patterns), task


def test_its_commands_are_understood():
    """Targets of the Makefile, and commands with flags that the parser takes."""
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    commands = re.findall(r"`sparsebench ([^`]+)`", README)
    assert len(commands) > 8
    for command in commands:
        if "--help" not in command:
            parser().parse_args(shlex.split(command))


def test_it_is_short():
    """Without the tables, which grow with the boards."""
    assert len(BLOCK.sub("", README).splitlines()) <= 110


def test_its_links_lead_to_headings():
    for page, anchor in re.findall(r"\]\(([\w/.]*)#([\w-]+)\)", README):
        text = (ROOT / (page or "README.md")).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert anchor in slugs, f"{page}#{anchor}"


def test_a_report_renews_the_table_and_nothing_else(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- board -->\nold\n<!-- /board -->\nafter\n")
    records = [record(0.75, seed=1), record(0.85, seed=2)]
    assert renewed(page, records) == [page]
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "80.0 ± 7.1" in page.read_text()
    assert "old" not in page.read_text()
    other = tmp_path / "other.md"
    other.write_text("no markers\n")
    assert renewed(other, records) == renewed(tmp_path / "none.md", records) == []
