"""Records from strangers: contradictions are found, and no text of theirs becomes markup."""

import csv
import io
import json
import os
import re

import pandas
import pytest

from bench.cli import main
from bench.core.record_parts import Speed
from bench.core.store import Store
from bench.core.tables import markdown, plain
from bench.engine import messages
from bench.planning.job import Job
from bench.reporting import compare, export_table, leaderboard
from bench.reporting.rows import method_name, ordered
from bench.review import gate, published, submissions
from tests import helpers
from tests.samples import record


def good(value=0.85, **cell):
    made = record(value, **({"method": "theirs"} | cell))
    scores = made.scores.model_copy(update={"all": {"accuracy": value}})
    return made.model_copy(
        update={"scores": scores, "origin": "A. N. Other, 2 GPUs".replace(",", "")}
    )


def patched(made, **parts):
    """A copy with fields of parts, or whole parts, replaced."""
    update = {}
    for name, new in parts.items():
        old = getattr(made, name)
        update[name] = old.model_copy(update=new) if hasattr(old, "model_copy") else new
    return made.model_copy(update=update)


def test_a_consistent_record_passes():
    assert submissions.problems(good()) == []
    assert submissions.problems(record(failed=True)) == [
        "origin 'local' is reserved for this project; name who ran the cell"
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"params": {"stored": 601}}, "params.stored is not nonzero + all that is not prunable"),
        ({"params": {"nonzero": 900, "stored": 1100}}, "nonzero <= prunable <= total"),
        ({"params": {"nonzero": 399, "stored": 599}}, "is not 1 − nonzero / prunable = 0.50125"),
        ({"sparsity": {"overall": 0.6}}, "sparsity.overall 0.6 is not 1 − nonzero / prunable"),
        ({"sparsity": {"min_layer": 0.6}}, "min_layer <= overall <= max_layer"),
        ({"sparsity": {"pattern_ok": False}}, "pattern unstructured does not hold"),
        ({"macs": {"effective": 10_001}}, "macs.effective is more than macs.dense"),
        ({"macs": {"realizable": 10_001}}, "macs.realizable is more than macs.dense"),
        ({"macs": {"head": 10_001}}, "macs.head is more than macs.dense"),
        ({"macs": {"tokens": 65}}, "macs.tokens is more than budget.length"),
        ({"bytes": {"stored": 4001}}, "bytes.stored is more than bytes.dense"),
        ({"scores": {"all": {}}}, "scores.all lacks the metric 'accuracy'"),
        ({"scores": {"value": 0.9}}, "scores.value is not scores.all['accuracy']"),
        ({"scores": {"value": 85.0, "all": {"accuracy": 85.0}}}, "scores.value is not a fraction"),
        ({"scores": {"items": "01"}}, "scores.items are 2, scores.n is 100"),
        ({"scores": {"items": "02" * 50}}, "other characters than 0 and 1"),
        ({"scores": {"n": 0}}, "scores.n is 0"),
        ({"scores": {"items": "01" * 50}}, "neither the mean of scores.items"),
        ({"scores": {"items": [0.8] * 100}}, "neither the mean of scores.items"),
        ({"origin": "local"}, "origin 'local' is reserved for this project"),
        ({"origin": "<b>x</b>"}, "origin is not a plain name"),
        (
            {"speed": [Speed(hardware="h", dtype="d", form="dense", batch=1, length=1,
                             ms_p50=2, ms_p95=1, dense_ms_p50=2)]},
            "ms_p50 is more than ms_p95",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_is_named(change, line):
    found = submissions.problems(patched(good(), **change))
    assert any(line in problem for problem in found)


def test_a_known_tasks_budget_and_versions_are_the_projects():
    made = good(task="tiny/reviews", model="tiny-bert", method="magnitude")
    lines = submissions.problems(made)
    assert any("budget is not the task's 'default'" in line for line in lines)
    lower = patched(made, scores={"higher_is_better": False})
    assert any("the task's is 'accuracy'" in line for line in submissions.problems(lower))


def put(folder, *records):
    for made in records:
        Store(folder).put(made)
    return folder


def run(capsys, *arguments):
    code = main.main(arguments)
    return (code, *capsys.readouterr())


def test_the_command_accepts_a_folder(capsys, tmp_path):
    folder = put(tmp_path / "s", *(good(0.85 + s / 100, seed=s) for s in (1, 2, 3)))
    code, out, _ = run(capsys, "check", str(folder))
    assert (code, out) == (0, "# Submission accepted, unverified\n\n3 records, 0 problems.\n")
    assert run(capsys, "check", str(tmp_path / "none"))[0] == 2
    (tmp_path / "empty").mkdir()
    assert run(capsys, "check", str(tmp_path / "empty"))[0] == 2
    assert run(capsys, "check", str(folder), "--update")[0] == 2


def test_a_failure_is_filed_as_one(tmp_path):
    job = Job.resolve(helpers.cell("magnitude"))
    lost = messages.failed(job, "oom", "no memory").model_copy(update={"origin": "them"})
    (path,) = submissions.accept([lost], tmp_path)
    assert path.name == "seed1.failed.json"
    assert Store(tmp_path / submissions.FOLDER / "them").load(path) == lost


def test_the_command_names_every_file_that_is_wrong(capsys, tmp_path):
    folder = put(tmp_path / "s", good(), good(seed=2), good(seed=3))
    where = next(folder.rglob("seed1.json")).parent
    os.replace(where / "seed2.json", where / "seed4.json")
    (where / "seed3.json").write_text('{"schema": 1, "cell": NaN}')
    (folder / "run.sh").write_text("#!/bin/sh")
    (folder / "big.json").write_bytes(b" " * (submissions.LARGEST + 1))
    (folder / "link.json").symlink_to("/etc/hostname")
    code, out, _ = run(capsys, "check", str(folder))
    assert code == 1
    wrong = ("belongs to", "NaN is not a JSON number", "run.sh", "16 MiB", "a link; send files")
    for text in wrong:
        assert text in out.replace("\\", ""), text
    assert str(tmp_path) not in out.partition("belongs to")[0].replace("\\", "")


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b|c",
    "a\\|b",
    "[x](javascript:alert(1))",
    "![x](http://h/x.png)",
    "`code`",
    "**bold** _it_ ~~x~~",
    "# heading",
    "line\nbreak\r\n\n## new heading",
    "\x1b[31mred\x1b]0;title\x07",
    "=HYPERLINK(\"http://h\")",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    " =1+1",
    "＝1+1",
    "\\input{/etc/passwd}",
    "$\\write18{ls}$ & # % ^ ~ {}",
    "a,b\"c",
    "\u202eright-to-left",
    "&lt;b&gt;",
]  # fmt: skip


def hostile(text, **cell):
    """A record with `text` wherever a record takes any."""
    made = good(**({"overrides": (("note", text),)} | cell))
    speed = Speed(
        hardware=text, dtype=text, form=text, batch=1, length=1,
        ms_p50=1, ms_p95=1, dense_ms_p50=1,
    )  # fmt: skip
    return patched(
        made,
        scores={"metric": text, "notes": [text], "all": {text: 0.85, "x": 1.0}},
        data={"subset": text, "repo": text, "fingerprint": "f"},
        model={"source": text},
        bytes={"formats": {text: 1}},
        env={"cpu": text, "train_dtype": text, "eval_dtype": text},
        speed=[speed],
        report={text: 1.0},
        origin=text,
    )


def pages(text):
    """Every Markdown page that a record gets into."""
    found = [hostile(text, seed=s) for s in (1, 2, 3)]
    others = [hostile(text, method="other", seed=s) for s in (1, 2, 3)]
    names = [method_name(r[0].cell.method, r[0].cell.overrides) for r in (found, others)]
    yield leaderboard.table([*found, *others], markdown)
    yield compare.report([*found, *others], *names)
    yield compare.report([*found, *others[:1], *[hostile(text, sparsity=0.9)]], *names)
    changed = [patched(r, bytes={"formats": {text: 2}}) for r in found]
    moved = gate.changes(gate.rows_of(found), gate.rows_of(changed))
    assert moved
    yield gate.verdict_text(moved, 1, text)
    yield published.section(found)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_record_becomes_markup(text):
    for page in pages(text):
        bare = re.sub(r"\\.", "", page)  # escaped characters are no markup
        assert "<" not in bare.replace("< 0.0001", "").replace("<=", "")
        assert "](" not in bare
        assert "`" not in bare
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert not re.search(r"^#+ (new )?heading", page, re.M)
        for block in re.findall(r"(?:^\|.*\n?)+", bare, re.M):
            widths = {line.count("|") for line in block.splitlines()}
            assert len(widths) == 1, (text, block)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_of_the_csv_is_a_formula_and_rows_stay_whole(text):
    header, row = csv.reader(io.StringIO(export_table.to_csv([hostile(text)])))
    assert len(header) == len(row)
    for cell in row:
        assert not re.match(r"\s*[=+\-@＝＋－＠\t\r]", cell) or re.fullmatch(r"-?[\d.e+-]+", cell)
    assert dict(zip(header, row, strict=True))["verified"] == "False"


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_json_and_the_terminal_are_safe(text):
    latex = export_table.to_latex([hostile(text)])
    assert "\\input" not in latex
    assert "\\write" not in latex
    assert len(latex.splitlines()) == 7
    assert json.loads(export_table.to_json([hostile(text)]))[0]["metric"] == text
    for shown in (leaderboard.table([hostile(text)]), plain(("a",), [[text]])):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_negative_numbers_stay_numbers():
    made = good(-0.05)
    header, row = csv.reader(io.StringIO(export_table.to_csv([made])))
    assert dict(zip(header, row, strict=True))["score"] == "-0.05"


def test_rows_are_tidy_and_deterministic():
    found = [good(seed=2), record(0.5, overrides=(("lr", 0.1), ("budget.steps", 10)))]
    first, second = export_table.rows(found)
    assert list(first) == list(second)
    assert (first["verified"], second["verified"]) == (False, True)
    assert (second["parameters"], second["shared"]) == ("lr=0.1", "budget.steps=10")
    assert export_table.to_csv(found) == export_table.to_csv(found)
    assert export_table.to_csv([]) == "\n"


def test_parquet_has_the_rows_with_their_types(tmp_path):
    found = [record(0.85), record(0.83, seed=2)]
    (tmp_path / "t.parquet").write_bytes(export_table.to_parquet(found))
    table = pandas.read_parquet(tmp_path / "t.parquet")
    assert table["score"].tolist() == [0.85, 0.83]
    assert table["seed"].dtype.kind == "i"
    assert list(table.columns) == list(export_table.rows(found)[0])


def test_parquet_is_no_text_to_print(capsys, tmp_path):
    folder = put(tmp_path / "r", good())
    code, _, err = run(capsys, "table", "--format", "parquet", "--results", str(folder))
    assert (code, err.count("\n")) == (2, 1)
    out = str(tmp_path / "t.parquet")
    flags = ("--format", "parquet", "--results", str(folder), "--out", out)
    assert run(capsys, "table", *flags)[0] == 0
    assert pandas.read_parquet(out)["method"].tolist() == ["theirs"]


@pytest.mark.parametrize("name", sorted(set(export_table.FORMATS) - {"parquet"}))
def test_the_table_command(capsys, tmp_path, name):
    folder = put(tmp_path / "r", good(), record(0.5))
    code, out, _ = run(capsys, "table", "--format", name, "--results", str(folder))
    assert code == 0
    assert "pst" in out
    assert "theirs" in out
    target = tmp_path / f"t.{name}"
    assert (
        run(capsys, "table", "--format", name, "--results", str(folder), "--out", str(target))[0]
        == 0
    )
    assert target.read_text() == out


def test_an_unverified_row_is_never_the_closest_cell():
    made = good(task="glue/mnli", model="bert-base", method="movement", sparsity=0.9)
    numbers = published.read_published()
    printed = next(n for n in numbers if n.label == "movement(no KD)" and "mnli" in n.task)
    assert published.closest(printed, {"glue/mnli": ordered([made])}) is None
