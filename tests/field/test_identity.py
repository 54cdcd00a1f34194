"""A local model's name covers all that changes a score: one changed file makes the cell stale."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bench.api import BenchError
from bench.cli.main import main
from bench.core.store import Store
from bench.planning import registry
from bench.sources import catalog
from tests import helpers
from tests.field import families

RUN = ["--suite", "tiny", "--task", "tiny/wikitext", "--method", "dense", "--seeds", "1"]


@pytest.fixture
def folder(tmp_path):
    made = families.save(tmp_path / "model", "llama", num_key_value_heads=2)
    (made / "generation_config.json").write_text('{"eos_token_id": 3}')
    return made


def edit_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def swap_words(tokenizer):
    vocab = tokenizer["model"]["vocab"]
    vocab["w0"], vocab["w1"] = vocab["w1"], vocab["w0"]


def negate(file):
    state = load_file(file)
    name = sorted(state)[0]
    state[name] = -state[name]
    save_file(state, file, {"format": "pt"})


CHANGES = {
    "tokenizer.json": lambda f: edit_json(f / "tokenizer.json", swap_words),
    "tokenizer_config.json": lambda f: edit_json(
        f / "tokenizer_config.json", lambda c: c.update(padding_side="left")
    ),
    "generation_config.json": lambda f: (f / "generation_config.json").write_text("{}"),
    "config.json": lambda f: edit_json(f / "config.json", lambda c: c.update(rms_norm_eps=1e-3)),
    "weights": lambda f: negate(f / "model.safetensors"),
    "another file of weights": lambda f: (f / "branch.safetensors").write_bytes(b"x"),
    "tokenizer.model": lambda f: (f / "tokenizer.model").write_bytes(b"x"),
    "merges.txt": lambda f: (f / "merges.txt").write_text("a b\n"),
    "special_tokens_map.json": lambda f: (f / "special_tokens_map.json").write_text("{}"),
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
    "bpe.codes": lambda f: (f / "bpe.codes").write_text("a b 1\n"),
    "source.spm": lambda f: (f / "source.spm").write_bytes(b"x"),
    "no generation_config.json": lambda f: (f / "generation_config.json").unlink(),
    "a file's name": lambda f: (f / "generation_config.json").rename(f / "generation.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_file_is_another_model(folder, change):
    before = catalog.adopt(str(folder))
    assert catalog.adopt(str(folder)) == before
    CHANGES[change](folder)
    assert catalog.adopt(str(folder)) != before


def test_what_transformers_does_not_read_changes_nothing(folder, tmp_path):
    before = catalog.adopt(str(folder))
    (folder / "README.md").write_text("A model.")
    (folder / "pytorch_model.bin").write_bytes(b"refused")
    (folder / "checkpoint.json").mkdir()
    assert catalog.adopt(str(folder)) == before
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(folder, moved)
    assert catalog.adopt(str(moved)) == before


def test_a_changed_tokenizer_makes_the_cell_missing(folder, tmp_path, capsys):
    command = [*RUN, "--model", str(folder), "--results", str(tmp_path / "r")]
    pages = ["--reports", str(tmp_path / "p")]
    assert main(["run", *command, *pages]) == 0
    capsys.readouterr()
    assert main(["plan", *command]) == 0
    assert "missing" not in capsys.readouterr().out
    ((first,), _) = Store(tmp_path / "r").records()
    CHANGES["tokenizer.json"](folder)
    assert main(["plan", *command]) == 0
    assert "missing" in capsys.readouterr().out
    assert main(["run", *command, *pages]) == 0
    records, _ = Store(tmp_path / "r").records()
    second = next(r for r in records if r.cell != first.cell)
    assert second.scores.value != first.scores.value


def test_a_folder_that_has_changed_is_not_taken_for_what_it_was(folder):
    slug = catalog.adopt(str(folder))
    task = registry.task("tiny/wikitext")
    helpers.load(slug, task)
    CHANGES["tokenizer.json"](folder)
    with pytest.raises(BenchError, match=rf"model is no longer {slug}; name the folder again"):
        helpers.load(slug, task)
    helpers.load(catalog.adopt(str(folder)), task)


def test_the_committed_records_keep_their_keys():
    root = Path(__file__).parents[2] / "results"
    records, _ = Store(root).records()
    assert len(records) > 10
    for record in records:
        assert record.key == record.cell.key
        assert not record.cell.model.startswith("local/")
        assert catalog.adopt(record.cell.model) == record.cell.model
