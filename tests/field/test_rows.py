"""The rows that are scored are those of the folder, as its files are now, and they are checked."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.api import BenchError, Budget
from bench.cli.main import main
from bench.pipeline import cache
from bench.planning.job import Job
from bench.sources import hub
from tasks import glue, nlg, wikitext
from tasks.shared import zero_shot_sets
from tasks.shared.c4 import c4_sample
from tasks.shared.classification import Classification, Rows
from tasks.shared.zero_shot_sets import SETS
from tests import helpers
from tests.field.families import build

RTE = {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}


def rte(i, **more):
    return {"sentence1": f"w{i} w2 w3", "sentence2": f"w{i % 7}", "label": i % 2, "idx": i} | more


def parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def csv(path, rows):
    lines = [list(rows[0]), *(row.values() for row in rows)]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))


WRITERS = {"parquet": parquet, "jsonl": jsonl, "csv": csv}


def mirror(root, repo, config, splits, kind="parquet", counts=None):
    """A hub-shaped folder with one data set whose README names its files, as the hub's do."""
    folder = Path(root, repo)
    (folder / config).mkdir(parents=True, exist_ok=True)
    files = ""
    for split, rows in splits.items():
        WRITERS[kind](folder / config / f"{split}-0.{kind}", rows)
        files += f"  - {{split: {split}, path: {config}/{split}-*}}\n"
    head = f"configs:\n- config_name: {config}\n  data_files:\n{files}"
    if counts:
        told = "".join(
            f"  - {{name: {split}, num_bytes: 1, num_examples: {n}}}\n"
            for split, n in counts.items()
        )
        head += f"dataset_info:\n- config_name: {config}\n  splits:\n{told}"
    (folder / "README.md").write_text(f"---\n{head}---\n")
    return folder


def rte_rows(n, **more):
    return {"train": [rte(i, **more) for i in range(n)], "validation": [rte(i) for i in range(n)]}


def glue_mirror(root, splits, name="rte", **more):
    return mirror(root, "nyu-mll/glue", name, splits, **more)


@pytest.fixture
def at(monkeypatch):
    """Makes a folder the mirror."""
    return lambda root: monkeypatch.setenv("SPARSEBENCH_HUB", str(root))


# Which rows are read.


@pytest.mark.parametrize("kind", WRITERS)
def test_two_mirrors_of_one_name_have_their_own_rows(tmp_path, at, kind):
    for root, word in (("A", "first"), ("B", "second")):
        rows = [rte(i) | {"sentence1": f"{word} {i}"} for i in range(20)]
        glue_mirror(tmp_path / root, {"train": rows, "validation": rows}, kind=kind)
    prints = []
    for root, word in (("A", "first"), ("B", "second"), ("A", "first")):
        at(tmp_path / root)
        task = glue.Glue("glue/rte")
        assert task.data.test.first == [f"{word} {i}" for i in range(20)]
        prints.append(task.source().fingerprint)
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("kind", WRITERS)
def test_an_edit_in_place_is_seen(tmp_path, at, kind):
    folder = glue_mirror(tmp_path, rte_rows(20), kind=kind)
    at(tmp_path)
    before = glue.Glue("glue/rte").source().fingerprint
    WRITERS[kind](folder / f"rte/validation-0.{kind}", [rte(i, label=0) for i in range(20)])
    task = glue.Glue("glue/rte")
    assert task.data.test.labels == [0] * 20
    assert task.source().fingerprint != before


def test_other_processes_see_their_mirror_and_leave_no_copy(tmp_path):
    code = "import sys; from tasks import glue; print(glue.Glue('glue/rte').data.test.first[0])"
    for root, word in (("A", "first"), ("B", "second")):
        rows = [rte(i) | {"sentence1": f"{word} {i}"} for i in range(20)]
        glue_mirror(tmp_path / root, {"train": rows, "validation": rows})
    told = []
    for root in ("A", "B"):
        env = os.environ | {"SPARSEBENCH_HUB": str(tmp_path / root), "HF_HUB_OFFLINE": "1"}
        env |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.getcwd()}
        env.pop("HF_DATASETS_CACHE", None)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert run.returncode == 0, run.stderr
        told.append(run.stdout.strip())
    assert told == ["first 0", "second 0"]
    assert sum(p.stat().st_size for p in (tmp_path / "home").rglob("*") if p.is_file()) == 0


def test_rows_are_those_of_all_files_in_order_with_the_readme_s_types(tmp_path, at):
    folder = glue_mirror(tmp_path, rte_rows(20))
    parquet(folder / "rte/validation-1.parquet", [rte(i) for i in range(20, 50)])
    at(tmp_path)
    found, revision = hub.load_split("nyu-mll/glue", "rte", "validation", "")
    assert revision == "mirror"
    assert list(found) == [rte(i) for i in range(50)]


def test_more_rows_than_are_read_at_once(tmp_path, at, monkeypatch):
    monkeypatch.setattr(hub, "READ_ROWS", 7)
    glue_mirror(tmp_path, rte_rows(20))
    at(tmp_path)
    assert glue.Glue("glue/rte").data.test.first == [rte(i)["sentence1"] for i in range(20)]


@pytest.mark.parametrize("n", [5, 40])
def test_the_rows_count_and_not_the_readme(tmp_path, at, n):
    glue_mirror(tmp_path, rte_rows(n), counts={"train": 2490, "validation": 277})
    at(tmp_path)
    task = glue.Glue("glue/rte")
    assert len(task.data.test) == n
    assert task.source().subset == f"train {n} of 2490 rows, validation {n} of 277 rows"


def test_more_rows_than_the_official_ones_are_told(tmp_path, at):
    glue_mirror(tmp_path, {"train": [rte(i) for i in range(2490)], "validation": [RTE] * 278})
    at(tmp_path)
    assert glue.Glue("glue/rte").source().subset == "validation 278 of 277 rows"


# The same for lm-eval's sets.


def zero_shot(root, name, rows):
    wanted = SETS[name]
    return mirror(root, wanted.repo, wanted.config, {wanted.split: rows})


def questions(i, key="B"):
    choices = {"text": [f"w{i + k}" for k in range(3)], "label": list("ABC")}
    return {"id": str(i), "question": f"w{i} w7", "choices": choices, "answerKey": key}


def test_a_zero_shot_set_is_scored_on_the_rows_of_its_mirror(tmp_path, at):
    from tasks.zero_shot import ZeroShot

    task = ZeroShot("zero-shot/rte")
    loaded = helpers.load("tiny-llama", task, 1)
    budget = Budget(steps=1, batch=1, length=64)
    for root, label in (("A", 0), ("B", 1)):
        zero_shot(tmp_path / root, "rte", [rte(i, label=label) for i in range(12)])
    found = []
    for root in ("A", "B"):
        at(tmp_path / root)
        found.append(task.evaluate(loaded.model, loaded.tok, torch.device("cpu"), budget=budget))
    # The labels are opposite, and the model's choices the same.
    flip = str.maketrans("01", "10")
    assert found[0].items == found[1].items.translate(flip)
    assert task.source().subset == "rte: 12 of 277 rows"


# What rows must be.


@pytest.mark.parametrize(
    ("name", "split", "change", "line"),
    [
        ("rte", "validation", {"label": -1}, "row 7: label -1; it must be an integer from 0 to 1"),
        ("rte", "train", {"label": 2}, "row 7: label 2; it must be an integer from 0 to 1"),
        ("rte", "train", {"label": None}, "row 7: label None; it must be an integer from 0 to 1"),
        ("rte", "train", {"sentence2": None}, "row 7: sentence2 None; it must be a text"),
        ("stsb", "validation", {"label": float("nan")}, "row 7: label nan; it must be a finite "),
        ("stsb", "train", {"label": float("inf")}, "row 7: label inf; it must be a finite number"),
        ("stsb", "train", {"label": None}, "row 7: label None; it must be a finite number"),
        ("wnli", "validation", {"sentence1": None}, "row 7: sentence1 None; it must be a text"),
    ],
)
def test_a_wrong_row_of_glue_is_one_line(tmp_path, at, name, split, change, line):
    def row(i):
        return rte(i) | ({"label": float(i % 5)} if name == "stsb" else {})

    splits = {part: [row(i) for i in range(20)] for part in ("train", "validation")}
    splits[split][7] |= change
    glue_mirror(tmp_path, splits, name)
    at(tmp_path)
    with pytest.raises(BenchError) as error:
        glue.Glue(f"glue/{name}").prepare()
    assert str(error.value).startswith(f"glue/{name} {split} {line}")
    assert "\n" not in str(error.value)


def test_a_column_of_another_type_is_one_line(tmp_path, at):
    rows = [rte(i, label=str(i % 2)) for i in range(9)]
    glue_mirror(tmp_path, {"train": rows, "validation": rows}, kind="jsonl")
    at(tmp_path)
    with pytest.raises(BenchError, match="glue/rte train row 0: label '0'; it must be an int"):
        glue.Glue("glue/rte").prepare()


def test_a_missing_column_and_an_empty_split_are_one_line(tmp_path, at):
    rows = [{k: v for k, v in rte(i).items() if k != "sentence2"} for i in range(9)]
    glue_mirror(tmp_path / "A", {"train": rows, "validation": rows})
    at(tmp_path / "A")
    with pytest.raises(BenchError, match="glue/rte train: there is no column 'sentence2'"):
        glue.Glue("glue/rte").prepare()
    folder = glue_mirror(tmp_path / "B", rte_rows(9))
    nothing = pa.Table.from_pylist([RTE]).slice(0, 0)
    pq.write_table(nothing, folder / "rte/validation-0.parquet")
    at(tmp_path / "B")
    with pytest.raises(BenchError, match="glue/rte validation: there are no rows in nyu-mll/glue"):
        glue.Glue("glue/rte").prepare()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_or_missing_file_is_one_line(tmp_path, at, damage):
    file = glue_mirror(tmp_path, rte_rows(9)) / "rte/validation-0.parquet"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    at(tmp_path)
    with pytest.raises(BenchError, match="cannot load rte/") as error:
        glue.Glue("glue/rte").prepare()
    assert error.value.kind == "offline"
    assert "\n" not in str(error.value)


def test_nothing_trains_on_hidden_labels(tmp_path, at, capsys):
    splits = rte_rows(40)
    splits["validation"] = [rte(i, label=-1) for i in range(40)]
    glue_mirror(tmp_path / "hub", splits)
    at(tmp_path / "hub")
    command = ["run", "--suite", "tiny", "--task", "glue/rte", "--method", "dense"]
    command += ["--results", str(tmp_path / "r"), "--reports", str(tmp_path / "p")]
    assert main(command) != 0
    told = capsys.readouterr()
    assert "glue/rte validation row 0: label -1; it must be an integer from 0 to 1" in told.err
    assert not list((tmp_path / "r").rglob("seed*.json"))


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        ("rte", [rte(0), rte(1, label=-1)], "validation row 1: label -1; it must be one of 0, 1"),
        ("rte", [rte(0, sentence1=None)], "validation row 0: sentence1 None; it must be a text"),
        ("arc_easy", [questions(0), questions(1, "E")], "test row 1: answerKey 'E'; it must be o"),
        ("arc_challenge", [questions(0, "")], "test row 0: answerKey ''; it must be one of A, B"),
        (
            "hellaswag",
            [{"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["a"] * 4, "label": ""}],
            "validation row 0: label ''; it must be one of 0, 1, 2, 3",
        ),
        (
            "winogrande",
            [{"sentence": "a _", "option1": "b", "option2": "c", "answer": ""}],
            "validation row 0: answer ''; it must be one of 1, 2",
        ),
        ("lambada_openai", [{"text": "a b"}, {"text": None}], "test row 1: text None; it must be"),
        ("boolq", [{"question": "a", "label": 0}], "validation: there is no column 'passage'"),
    ],
)
def test_a_wrong_row_of_a_zero_shot_set_is_one_line(tmp_path, at, name, rows, line):
    zero_shot(tmp_path, name, rows)
    at(tmp_path)
    with pytest.raises(BenchError) as error:
        zero_shot_sets.load(SETS[name])
    assert str(error.value).startswith(f"zero-shot/{name} {line}")


def test_texts_of_language_tasks_are_texts(tmp_path, at):
    rows = [{"text": " = A = \n"}, {"text": "b"}, {"text": None}]
    mirror(tmp_path, "Salesforce/wikitext", "wikitext-2-raw-v1", {"train": rows, "test": rows})
    mirror(tmp_path, "calibration/c4_sample", "default", {"train": rows})
    at(tmp_path)
    with pytest.raises(BenchError, match="wikitext train row 2: text None; it must be a text"):
        wikitext.Wikitext("wikitext").prepare()
    with pytest.raises(BenchError, match="c4_sample train row 2: text None; it must be a text"):
        c4_sample()


def test_texts_of_data_to_text_are_texts(tmp_path, at):
    rows = [{"meaning_representation": "name[A]", "human_reference": "A."}] * 3
    rows.append({"meaning_representation": "name[B]", "human_reference": None})
    mirror(tmp_path, "tuetschek/e2e_nlg", "default", {"train": rows, "test": rows})
    dart = [{"tripleset": [["A", "IS", "B"]], "annotations": {"source": ["x"], "text": ["t"]}}]
    dart.append({"tripleset": [["A", None, "B"]], "annotations": {"source": ["x"], "text": ["t"]}})
    mirror(tmp_path, "Yale-LILY/dart", "default", {"train": dart, "test": dart})
    at(tmp_path)
    with pytest.raises(BenchError, match="nlg/e2e train row 3: .*None is no text"):
        nlg.E2e("nlg/e2e").data  # noqa: B018
    with pytest.raises(BenchError, match="nlg/dart train row 1: .*NoneType"):
        nlg.Dart("nlg/dart").data  # noqa: B018


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (Rows(["a", "b"], None, [0, 2]), "own train row 1: label 2; it must be an integer from 0"),
        (Rows(["a", 3], None, [0, 1]), "own train row 1: text 3; it must be a text"),
        (Rows([], None, []), "own train: there are no rows"),
    ],
)
def test_a_task_of_ones_own_is_checked_too(rows, line):
    class Own(Classification):
        def _load(self):
            from tasks.shared.base import Splits

            return Splits(rows, rows, Rows(["a"], None, [1]), "made up", "1", "none")

    with pytest.raises(BenchError) as error:
        Own("own").prepare()
    assert str(error.value).startswith(line)


def test_dense_weights_of_other_rows_are_refused(tmp_path, at):
    def job():
        cell = helpers.cell("dense", task="glue/rte", pattern="dense")
        return replace(Job.resolve(cell), task=glue.Glue("glue/rte"))

    glue_mirror(tmp_path / "A", rte_rows(20))
    glue_mirror(tmp_path / "B", rte_rows(21))
    at(tmp_path / "A")
    cache.keep_weights(build("bert", "SequenceClassification"), job(), 1.5)
    assert cache.dense_seconds(cache.trained_dir(job()), job()) == 1.5
    at(tmp_path / "B")
    with pytest.raises(BenchError, match="other rows of glue/rte"):
        cache.dense_seconds(cache.trained_dir(job()), job())
