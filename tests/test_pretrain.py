"""`sparsebench pretrain`: the same bytes twice, and a model like any other."""

import json

import pytest

from bench.api import BenchError, Cell
from bench.cli import main
from bench.pipeline.pretrain import Recipe, pretrain
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import catalog
from bench.weights import targets
from tests import helpers
from tests.helpers import run_cell

RECIPE = Recipe(
    layers=2, width=32, heads=2, positions=64, vocabulary=300, steps=4, batch=4, length=16
)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for k in range(3):
        lines = [f"Line {i} of file {k} says {i * i}." for i in range(60)]
        (folder / f"{k}.txt").write_text("\n\n".join(lines))
    return folder


def test_the_same_recipe_gives_the_same_bytes(texts):
    read = []
    for recipe in (RECIPE, RECIPE, Recipe(**{**vars(RECIPE), "seed": 2})):
        place = pretrain([str(texts)], recipe, lambda *_: None)
        read.append([(place / f).read_bytes() for f in ("model.safetensors", "tokenizer.json")])
    assert read[0] == read[1]
    assert read[0][0] != read[2][0]
    assert read[0][1] == read[2][1]
    recipe = json.loads((place / "recipe.json").read_text())
    assert (recipe["steps"], recipe["seed"]) == (4, 2)


def test_several_sources_are_read_in_their_order(texts, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    (more / "0.txt").write_text("Quite another text, of another folder. " * 20)
    place = pretrain([str(texts), str(more)], RECIPE, lambda *_: None)
    both = json.loads((place / "recipe.json").read_text())
    assert both["sources"] == [str(texts), str(more)]
    assert "another" in (place / "tokenizer.json").read_text()
    pretrain([str(texts)], RECIPE, lambda *_: None)
    alone = json.loads((place / "recipe.json").read_text())
    assert alone["text_sha256"] != both["text_sha256"]


def test_it_is_a_model_for_every_causal_task(texts):
    pretrain([str(texts)], RECIPE, lambda *_: None)
    loaded = helpers.load("gpt2-mini", registry.task("tiny/wikitext"), 1)
    assert all(t.transposed for t in targets.prunable(loaded.model))
    assert loaded.tok("Line 7")["input_ids"]
    cell = Cell(
        task="tiny/wikitext",
        model="gpt2-mini",
        method="magnitude",
        pattern="unstructured",
        sparsity=0.5,
        overrides=(("budget.length", 32),),
    )
    assert run_cell(cell, lambda *_: None).sparsity.overall == pytest.approx(0.5, abs=1e-3)
    assert Job.resolve(cell).budget.length == 32


def test_a_default_recipe_has_between_5_and_15_million_parameters():
    r = Recipe()
    blocks = r.layers * (12 * r.width**2 + 13 * r.width)
    total = blocks + (r.vocabulary + r.positions) * r.width + 2 * r.width
    assert 5e6 < total < 15e6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--text", "reviews"), "reviews has no running text"),
        (("--set", "depth=3"), "the recipe has no parameter 'depth'"),
    ],
)
def test_bad_input_is_one_line(texts, capsys, arguments, line):
    assert main.main(("pretrain", *arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err


def test_a_folder_without_text_and_a_model_not_made_yet(texts, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="empty holds no text"):
        pretrain([str(texts), str(tmp_path / "empty")], RECIPE, lambda *_: None)
    with pytest.raises(
        BenchError, match="gpt2-mini is not on this machine yet; run: sparsebench pretrain"
    ):
        catalog.locate("gpt2-mini")
