"""What the front page shows must work, and its generated table must be current."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.cli.listing import methods_table
from bench.planning import registry
from methods.shared.masks import pruned_count
from methods.TEMPLATE import FixedMask
from tests import helpers

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


def test_the_table_of_methods_is_generated():
    (shown,) = re.findall(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README, re.S)
    assert shown.strip() == methods_table(), "sparsebench list methods --markdown"


def test_what_the_readme_names_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    table = re.search(r"^\| task \|.*?\n\n", README, re.M | re.S)[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    patterns = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    for task in registry.builtin("task"):
        assert any(fnmatch(task, pattern) for pattern in patterns), task
