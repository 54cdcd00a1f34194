"""The zero-shot tasks: lm-eval's definitions on rows from a folder, and their scores."""

import json
import sys

import pytest
import torch

from bench.api import BenchError, Budget
from bench.cli.main import main, parser
from bench.cli.selection import resolve
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import hub
from tasks.shared import zero_shot_sets
from tasks.shared.zero_shot_sets import SETS
from tests import helpers
from tests.helpers import run_cell
from tests.test_real import needs_hub

CPU = torch.device("cpu")
WORDS = [f"w{i}" for i in range(256)]


def text(i, n):
    return " ".join(WORDS[(7 * i + 13 * k * k) % 256] for k in range(n))


def rte(i):
    return {"sentence1": text(i, 12), "sentence2": text(i + 1, 5), "label": i % 2, "idx": i}


def boolq(i):
    return {"question": text(i, 5), "passage": text(i // 3, 30), "idx": i, "label": i % 2}


def arc(i):
    choices = [text(i + k, 1 + k) for k in range(4)]
    return {
        "id": f"q{i}",
        "question": text(i, 9),
        "choices": {"text": choices, "label": list("ABCD")},
        "answerKey": "ABCD"[i % 4],
    }


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A hub-shaped folder with made-up rows of three sets."""
    from datasets import Dataset

    rows = {"rte": rte, "boolq": boolq, "arc_easy": arc}
    for name, row in rows.items():
        found = SETS[name]
        folder = tmp_path / "hub" / found.repo
        (folder / found.config).mkdir(parents=True)
        file = f"{found.config}/{found.split}-00000-of-00001.parquet"
        Dataset.from_list([row(i) for i in range(24)]).to_parquet(folder / file)
        files = f"data_files:\n  - split: {found.split}\n    path: {file}"
        head = f"---\nconfigs:\n- config_name: {found.config}\n  {files}\n---\n"
        (folder / "README.md").write_text(head)
    monkeypatch.setenv("SPARSEBENCH_HUB", str(tmp_path / "hub"))
    return tmp_path


def only(*names):
    task = registry.task("zero-shot")
    task.sets, task.averaged = [SETS[name] for name in names], list(names)
    return task


def test_scores_are_those_of_the_command_line(mirror, monkeypatch):
    from lm_eval.__main__ import cli_evaluate

    task = only("rte", "boolq", "arc_easy")
    loaded = helpers.load("tiny-llama", task, 1)
    found = task.evaluate(
        loaded.model, loaded.tok, CPU, budget=Budget(steps=1, batch=1, length=64, items=20)
    )
    folder = mirror / "model"
    loaded.model.save_pretrained(folder)
    loaded.tok.save_pretrained(folder)
    yamls = mirror / "yamls"
    yamls.mkdir()
    _, paths = task.definitions(yamls)
    command = ["lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--batch_size", "4"]
    command += ["--tasks", ",".join(paths), "--limit", "20", "--output_path", str(mirror / "out")]
    monkeypatch.setattr(sys, "argv", command)
    cli_evaluate()
    (written,) = (mirror / "out").rglob("results*.json")
    theirs = json.loads(written.read_text())["results"]
    for name in ("rte", "boolq", "arc_easy"):
        assert found.values[name] == theirs[name]["acc,none"]
    assert found.values["arc_easy_norm"] == theirs["arc_easy"]["acc_norm,none"]
    assert found.n == len(found.items) == 60
    assert found.notes == ("the first 20 rows of each set",)
    means = [found.values[name] for name in ("rte", "boolq", "arc_easy")]
    assert found.values["accuracy"] == pytest.approx(sum(means) / 3)
    # A right item lies above the mean of its set, which is where a wrong one lies below it.
    assert sum(found.items) / 60 == pytest.approx(found.values["accuracy"])
    right = [item > found.values["accuracy"] for item in found.items]
    assert [sum(right[k : k + 20]) / 20 for k in (0, 20, 40)] == means


@pytest.mark.parametrize(
    ("task", "limit", "line"),
    [
        ("zero-shot/rte", 278, "budget.items=278: zero-shot/rte scores at most 277 items"),
        ("zero-shot", 10043, "budget.items=10043: zero-shot scores at most 10042 items"),
        ("nlg/e2e", 631, "budget.items=631: nlg/e2e scores at most 630 items"),
        ("wikitext", 100001, "budget.items=100001: wikitext scores at most 100000 items"),
        ("reviews", 5, "budget.items=5: reviews is always scored on all its items"),
    ],
)
def test_a_limit_beyond_the_set_is_refused_before_anything_runs(task, limit, line, capsys):
    command = ["plan", "--suite", "zero-shot", "--task", task, "--limit", str(limit)]
    assert main(command) == 2
    assert capsys.readouterr().err == f"sparsebench: {line}\n"


def test_a_limit_is_an_override_of_the_budget():
    found = [job.cell for job in cells("--task", "zero-shot/rte", "--limit", "20")]
    assert found
    for cell in found:
        assert cell.overrides.budget == (("items", 20),)
        assert Job.resolve(cell).budget.items == 20


def cells(*arguments):
    options = parser().parse_args(["plan", "--suite", "zero-shot", *arguments])
    return resolve(options)[2]


def test_the_tiny_twin_is_learnt_from_its_text():
    """A quarter by chance; the chain that makes the right ending is in the training text."""
    chance, learnt = (
        run_cell(
            helpers.cell(method, model="tiny-llama", task="tiny/zero-shot"), lambda *_: None
        ).scores
        for method in ("dense", "gmp")
    )
    assert chance.value == pytest.approx(0.25, abs=0.08)
    assert learnt.value > 0.33
    assert chance.n == learnt.n == len(learnt.items) == 300
    assert learnt.items.count("1") == round(300 * learnt.value)


def test_there_is_no_select_slice():
    task = registry.task("zero-shot/rte")
    with pytest.raises(BenchError, match="zero-shot/rte has no select slice; tune on wikitext"):
        task.evaluate(None, None, CPU, split="select")


def test_the_source_names_sets_and_the_text_for_calibration(mirror):
    source = only("rte", "arc_easy").source()
    assert source.repo == "nyu-mll/glue:rte allenai/ai2_arc:ARC-Easy"
    assert source.revision == "mirror"
    assert source.select.endswith("calibration/c4_sample")
    assert source.fingerprint != only("rte").source().fingerprint


def test_an_unknown_set_is_named():
    with pytest.raises(BenchError, match="zero-shot/arc-easy.*zero-shot/arc_easy"):
        registry.task("zero-shot/arc-easy")


@pytest.mark.real
@needs_hub
@pytest.mark.parametrize("name", SETS)
def test_the_asset_has_the_hubs_rows(name):
    """What prompts are made of; ARC's own letters for its choices (A to D, 1 to 4) are not."""
    from datasets import load_dataset

    found = SETS[name]
    theirs = load_dataset(str(hub.find(found.repo)), found.config, split=found.split)
    ours = load_dataset(str(zero_shot_sets._rebuilt(found)), split=found.split)
    assert len(theirs) == len(ours) == found.rows

    def shown(row):
        if name.startswith(("arc", "openbookqa")):
            key = row["choices"]["label"].index(row["answerKey"])
            return (row.get("question") or row["question_stem"], row["choices"]["text"], key)
        if name == "lambada_openai":
            return row["text"].split()
        return {k: row[k] for k in ours.column_names}

    assert all(shown(a) == shown(b) for a, b in zip(theirs, ours, strict=True))
