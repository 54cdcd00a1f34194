import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bench.cli import main
from bench.cli.shelves import Shelves
from bench.core.record_parts import Versions
from bench.core.store import Store
from bench.core.tuning import NO_CHOICES
from bench.planning.job import Job
from tests import helpers
from tests.samples import record


def run(capsys, *arguments):
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_sigterm_stops_a_command_as_ctrl_c_does(monkeypatch, capsys):
    """What is open is closed: a temporary folder, children, leases."""
    closed = []

    def handler(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            closed.append(True)

    before = signal.getsignal(signal.SIGTERM)
    command = argparse.Namespace(parse_args=lambda _: argparse.Namespace(handler=handler))
    monkeypatch.setattr(main, "parser", lambda: command)
    code, _, err = run(capsys)
    assert (code, closed) == (143, [True])
    assert err.startswith("sparsebench: stopped")
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom bench.cli import main\n"
        "try:\n    main.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert "usage: sparsebench" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "magnitud"], "unknown method 'magnitud': did you mean magnitude"),
        (["--task", "glue/rt"], "unknown task 'glue/rt': did you mean glue/rte"),
        (["--suite", "quik"], "unknown suite 'quik': did you mean quick?"),
        (["--model", "minilm"], "unknown model 'minilm': did you mean minilm-l6"),
        (["--method", "qqqq"], "see `sparsebench list methods`"),
        (["--method", "pst", "--pattern", "2:4"], "method pst makes unstructured, not 2:4"),
        (
            ["--method", "pst", "--pattern", "unstructured", "2:4"],
            "no cell for pattern 2:4 with the rest of what was asked for; `sparsebench plan",
        ),
        (
            ["--method", "pst", "wanda", "--pattern", "2:4"],
            "no cell for method pst with the rest of what was asked for",
        ),
        (
            ["--method", "wanda", "--pattern", "2:4", "--sparsity", "0.7"],
            "no cell for sparsity 0.7",
        ),
        (["--method", "magnitude", "--pattern", "4:4"], "N must be below M"),
        (["--method", "magnitude", "--pattern", "tower"], "'tower' is not a pattern; use dense"),
        (["--method", "pst", "--sparsity", "1.5"], "sparsity 1.5"),
        (["--method", "pst", "--set", "lrr=1"], "no parameter 'lrr': did you mean lr?"),
        (
            ["--method", "pst", "--set", "lr=fast"],
            "pst: lr 'fast': Input should be a valid number",
        ),
        (
            ["--method", "pst", "--set", "budget.steps=0"],
            "budget: steps 0: Input should be greater",
        ),
        (
            ["--method", "pst", "--set", "budget.stepz=9"],
            "no parameter 'stepz': did you mean steps?",
        ),
        (["--method", "pst", "--set", "lr"], "write KEY=VALUE"),
        (["--budget", "huge"], "unknown budget 'huge'"),
        (["--seeds", "-1"], "seed -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, arguments, line):
    code, out, err = run(capsys, "run", "--results", str(tmp_path / "r"), *arguments)
    assert code == 2
    assert line in err
    assert err.startswith("sparsebench: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("nope",), ("run", "--nope"), ("run", "--timeout", "0"), ("worker",)]
)
def test_a_wrong_command_line_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert line.startswith("sparsebench: ")
    assert line.endswith(" --help")


@pytest.fixture
def untuned(monkeypatch):
    """No settings were chosen: a plan's lines do not depend on what is published."""
    monkeypatch.setattr(Shelves, "choices", lambda self: NO_CHOICES)


@pytest.mark.usefixtures("untuned")
def test_plan_takes_the_baselines_along(capsys, tmp_path):
    folder = ("--results", str(tmp_path))
    code, out, _ = run(capsys, "plan", "--suite", "quick", "--method", "pst", *folder)
    assert code == 0
    assert [line.partition("  about ")[0].partition(";")[0] for line in out.splitlines()] == [
        "missing  run  reviews minilm-l6 dense dense 0 seed 1",
        "missing  run  reviews minilm-l6 magnitude unstructured 0.5 seed 1",
        "missing  run  reviews minilm-l6 magnitude unstructured 0.7 seed 1",
        "missing  run  reviews minilm-l6 magnitude unstructured 0.9 seed 1",
        "missing  run  reviews minilm-l6 pst unstructured 0.5 seed 1",
        "missing  run  reviews minilm-l6 pst unstructured 0.7 seed 1",
        "missing  run  reviews minilm-l6 pst unstructured 0.9 seed 1",
        "7 of 7 cells to run",
    ]


@pytest.mark.usefixtures("untuned")
def test_plan_reuses_records_and_sees_stale_failed_and_corrupt_ones(capsys, tmp_path):
    store = Store(tmp_path)
    made = record(method="pst", sparsity=0.5)
    store.put(made.model_copy(update={"versions": Job.resolve(made.cell).versions}))
    store.put(
        record(method="pst", sparsity=0.6).model_copy(
            update={"versions": Versions(method=99, task=1)}
        )
    )
    store.put(record(method="pst", sparsity=0.7, failed=True))
    store.put(record(method="pst", sparsity=0.8)).write_text("{")
    levels = ("0.5", "0.6", "0.7", "0.8", "0.9")
    _, out, _ = run(
        capsys, "plan", "--method", "pst", "--sparsity", *levels, "--results", str(tmp_path)
    )
    states = {line.split()[6]: line.split()[:2] for line in out.splitlines() if " pst " in line}
    assert states == {
        "0.5": ["done", "keep"],
        "0.6": ["stale", "run"],
        "0.7": ["failed", "run"],
        "0.8": ["corrupt", "run"],
        "0.9": ["missing", "run"],
    }


def test_dry_run_writes_nothing(capsys, tmp_path):
    code, out, _ = run(
        capsys, "run", "--suite", "tiny", "--dry-run", "--results", str(tmp_path / "r")
    )
    assert code == 0
    assert "cells to run" in out
    assert not (tmp_path / "r").exists()


def test_missing_data_is_one_line_and_every_cell_fails_offline(capsys, tmp_path):
    folders = ("--results", str(tmp_path / "r"), "--reports", str(tmp_path / "p"))
    code, _, err = run(
        capsys, "run", "--suite", "glue", "--method", "pst", "--task", "glue/qqp",
        "--model", "tiny-bert", "--seeds", "1", *folders,
    )  # fmt: skip
    assert code == 2
    first, line = err.splitlines()
    assert first.startswith("sparsebench: 5 of 5 cells to run")
    assert line.startswith("sparsebench: cannot reach nyu-mll/glue")
    failures = list((tmp_path / "r").rglob("*.failed.json"))
    assert len(failures) == 5
    assert {json.loads(f.read_text())["error"]["kind"] for f in failures} == {"offline"}


def test_a_folder_is_adopted_under_its_content(capsys, tmp_path):
    from bench.planning import registry
    from bench.sources import catalog

    loaded = helpers.load("tiny-bert", registry.task("tiny/reviews"), 1)
    folder = tmp_path / "My Model"
    loaded.model.save_pretrained(folder)
    loaded.tok.save_pretrained(folder)
    slug = catalog.adopt(str(folder))
    assert slug.startswith("local/my-model-")
    again = helpers.load(slug, registry.task("tiny/reviews"), 1)
    assert again.source.weights_sha256 == loaded.source.weights_sha256
    assert str(tmp_path) not in again.source.model_dump_json()


def test_pickled_weights_are_refused(tmp_path):
    import torch

    from bench.api import BenchError
    from bench.planning import registry
    from bench.sources import catalog

    loaded = helpers.load("tiny-bert", registry.task("tiny/reviews"), 1)
    folder = tmp_path / "pickled"
    loaded.model.config.save_pretrained(folder)
    loaded.tok.save_pretrained(folder)
    torch.save(loaded.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BenchError, match="holds no safetensors; pickled weights are refused"):
        helpers.load(catalog.adopt(str(folder)), registry.task("tiny/reviews"), 1)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("gmp", "--pattern", "2:5"), "query has 64 inputs, not a multiple of 5"),
        (("ast", "--set", "slorb=mean", "slorb_k=24"), "slorb_k 24: bert.encoder.layer.0"),
    ],
)
def test_what_a_model_does_not_fit_is_refused_before_the_dense_cell(
    capsys, tmp_path, monkeypatch, more, line
):
    monkeypatch.chdir(tmp_path)
    assert main.main(["run", "--suite", "tiny", "--method", *more]) == 2
    announced, refused = capsys.readouterr().err.splitlines()
    assert announced.startswith("sparsebench: 2 of 2 cells to run")
    assert line in refused
    assert list(tmp_path.iterdir()) == []
