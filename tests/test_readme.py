"""What the README shows must work."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from bench.api import Method
from bench.core.pattern import default_of
from bench.planning import registry
from methods.shared.masks import pruned_count
from tests import helpers
from tests.helpers import fit_cell

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def defined(block, base):
    space = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), space)
    return next(
        v for v in space.values() if isinstance(v, type) and issubclass(v, base) and v is not base
    )


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_the_method_example_trains_and_keeps_its_zeros(model, monkeypatch):
    cls = defined(BLOCKS[0], Method)
    assert len([line for line in BLOCKS[0].splitlines() if line]) < 40
    original = registry.method
    monkeypatch.setattr(registry, "method", lambda n: cls if n == cls.name else original(n))
    steps = {"budget__steps": 4, "budget__batch": 4}
    fit = fit_cell(helpers.cell(cls.name, model, 0.7, **steps), lambda *_: None)
    sizes = [t.weight.numel() for t in helpers.targets.prunable(fit.model)]
    assert list(helpers.zeros(fit.model).values()) == [pruned_count(n, 0.7) for n in sizes]


def test_the_task_example_is_scored():
    from tasks.shared.classification import Classification

    task = defined(BLOCKS[1], Classification)("weather")
    loaded = helpers.load("tiny-bert", registry.task(helpers.TASK), 1)
    loaded.tok.model_max_length = 8
    assert task.evaluate(loaded.model, loaded.tok, torch.device("cpu")).n == 200
    assert len(task.train(loaded.tok)) + len(task.data.select) == 1000


def first_column(title):
    """Names in the first column of the table that is headed by `title`."""
    table = re.search(rf"^\| {title} \|.*?\n\n", README, re.M | re.S)[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    return [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]


def test_what_the_readme_names_is_there():
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    assert set(first_column("method")) == set(registry.names("method"))
    patterns = first_column("task")
    for task in registry.names("task"):
        assert any(fnmatch(task, pattern) for pattern in patterns), task
    assert set(re.findall(r"^([a-z]+)/ ", README, re.M)) <= {p.name for p in ROOT.iterdir()}
    assert str(default_of("N:M")) == "2:4"
