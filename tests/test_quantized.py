"""Cells whose finished weights are rounded to integers, their bytes, and exporting records."""

import math

import pytest
import torch

from bench.api import BenchError
from bench.cli import main
from bench.core.overrides import Quantizer
from bench.core.pattern import Pattern
from bench.core.record_parts import Trainable
from bench.core.store import Store
from bench.costs.parameters import count_params
from bench.export import export
from bench.formats import file_sizes
from bench.formats.quantize import rounded
from bench.planning.job import Job
from bench.reporting import leaderboard
from bench.weights import targets
from tests import helpers
from tests.helpers import fit_cell, run_cell, trained_dir
from tests.samples import record
from tests.test_slicing import made as sliceable
from tests.test_slicing import zero

SMALL = {"budget__steps": 4, "budget__batch": 4}
INT4 = {"export__quantize": "int4"}
ALL8 = {**INT4, "export__embeddings": "int8", "export__group": 128}
SHAPES = 2 * [*4 * [(64, 64)], (128, 64), (64, 128)]  # of tiny-bert


def quiet(*_):
    pass


def command(capsys, *arguments):
    code = main.main(tuple(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def records():
    """Dense, dense rounded, 2:4, 2:4 rounded, and embeddings too, as `run` leaves them."""
    cells = {
        "dense": helpers.cell("dense", **SMALL),
        "dense int4": helpers.cell("dense", **SMALL, **INT4),
        "2:4": helpers.cell("magnitude", pattern="2:4", **SMALL),
        "2:4 int4": helpers.cell("magnitude", pattern="2:4", **SMALL, **INT4),
        "2:4 all": helpers.cell("magnitude", pattern="2:4", **SMALL, **ALL8),
    }
    return {name: run_cell(cell, quiet) for name, cell in cells.items()}


def test_quantizing_is_the_last_step(records):
    cells = {name: r.cell for name, r in records.items()}
    reference = cells["dense"]
    assert {cell.dense for cell in cells.values()} == {reference}
    assert [Job.resolve(c).needs_dense for c in cells.values()] == [False] + [True] * 4
    # A quantized dense cell is not trained a second time and leaves no weights.
    assert records["dense int4"].cost.train_s == 0
    assert records["dense int4"].cost.dense_s == records["dense"].cost.train_s > 0
    assert not trained_dir(cells["dense int4"]).exists()
    for name in ("dense", "2:4"):
        plain = fit_cell(cells[name], quiet).model
        for target in targets.prunable(plain):
            target.write(rounded(target.weight, Quantizer(name="int4")))
        found = fit_cell(cells[f"{name} int4"], quiet).model
        for one, two in zip(targets.prunable(plain), targets.prunable(found), strict=True):
            assert torch.equal(one.weight, two.weight)


def test_bytes_are_counted_in_every_format(records):
    dense, half = records["dense"].bytes, records["2:4"].bytes
    assert set(dense.formats) == {"bitmap", "csr", "int8", "int4"}
    assert set(half.formats) == {"bitmap", "csr", "nm-packed", "int8", "int4"}
    assert dense.stored == dense.dense == half.dense == 4 * records["dense"].params.total
    assert half.stored == half.formats["nm-packed"]
    n = records["2:4"].params.prunable
    around = dense.dense - 4 * n
    sizes = [rows * columns for rows, columns in SHAPES]
    assert sum(sizes) == n
    index = sum(math.ceil(size / 4 / 3) for size in sizes)  # a byte numbers three groups
    assert half.stored - around == 4 * n // 2 + index
    assert half.formats["int4"] - around == n // 2 // 2 + index + 2 * n // 64
    assert dense.formats["int4"] - around == n // 2 + 2 * n // 64
    assert records["dense int4"].bytes.formats == {"int4": dense.formats["int4"]}
    assert records["2:4 int4"].bytes.stored == half.formats["int4"]
    assert records["2:4 int4"].params.nonzero < records["2:4"].params.nonzero


def test_embeddings_are_rounded_with_the_rest(records):
    plain = fit_cell(records["2:4"].cell, quiet).model
    found = fit_cell(records["2:4 all"].cell, quiet).model
    before, after = plain.state_dict(), found.state_dict()
    widths = {f"{t.name}.weight": "int4" for t in targets.prunable(plain)}
    tables = [f"{t.name}.weight" for t in targets.embedding_tables(plain)]
    widths |= dict.fromkeys(tables, "int8")
    assert len(tables) == 3
    for name, weight in before.items():
        if name in widths:
            weight = rounded(weight, Quantizer(name=widths[name], group=128))
        assert torch.equal(after[name], weight), name
    rows = sum(len(before[name]) for name in tables)
    size, both = records["2:4 all"].bytes, records["2:4"].bytes
    assert both.embeddings.dense == both.embeddings.stored == 4 * 64 * rows
    assert size.embeddings.dense == 4 * 64 * rows
    assert size.embeddings.stored == 64 * rows + 2 * rows
    # Only rows of 128 inputs, of the two blocks' second FFN matrix, have a scale less.
    saved = 4 * 64 * rows - 66 * rows + 2 * (2 * 64)
    assert size.stored == records["2:4 int4"].bytes.stored - saved
    assert size.formats == {"int4": size.stored}


def test_bytes_of_dead_heads_are_those_of_the_sliced_model():
    model = sliceable("gpt2")
    whole = file_sizes.bytes_of(model, Pattern("heads"), None)
    assert "sliced" not in whole.formats
    zero(model)
    from bench.weights import slicing

    found = file_sizes.bytes_of(model, Pattern("heads"), None)
    slicing.slice_units(model)
    assert found.formats["sliced"] == 4 * sum(p.numel() for p in model.parameters())


def test_the_table_has_a_column_and_names_stay(records):
    lines = leaderboard.table(records.values()).splitlines()
    header = next(line for line in lines if line.startswith("method"))
    assert header.split()[:3] == ["method", "pattern", "quantized"]
    rows = [tuple(line.split()[:3]) for line in lines if line.startswith(("dense ", "magnitude "))]
    assert set(rows) == {
        (method, pattern, quantized)
        for method, pattern in (("dense", "dense"), ("magnitude", "2:4"))
        for quantized in ("–", "int4/64")
    } | {("magnitude", "2:4", "int4/128")}
    assert any("int4/128 + emb int8" in line for line in lines)
    assert "–" not in [line.split()[5] for line in lines if line.startswith("dense ")]  # recovery
    assert "export." not in "".join(lines)


def test_the_flag_quantizes_every_method_and_keeps_the_reference(capsys, tmp_path):
    folder = ("--results", tmp_path)
    flags = ("--suite", "tiny", "--method", "magnitude", "--quantize", "int8")
    code, out, _ = command(capsys, "plan", *flags, *folder, "--group", 128)
    assert code == 0
    long = ("--set", "export.group=128", "export.quantize=int8")
    assert command(capsys, "plan", *flags[:-2], *folder, *long) == (0, out, "")
    code, all_of_it, _ = command(capsys, "plan", *flags, *folder, "--embeddings", "int4")
    assert (code, all_of_it.count("export.embeddings=int4 export.quantize=int8")) == (0, 2)
    told = [line.partition(" run  ")[2].partition("  about ")[0] for line in out.splitlines()]
    assert told[:-1] == [
        "tiny/reviews tiny-bert dense dense 0 seed 1",
        "tiny/reviews tiny-bert dense dense 0 seed 1 export.group=128 export.quantize=int8",
        "tiny/reviews tiny-bert magnitude unstructured 0.5 seed 1 "
        "export.group=128 export.quantize=int8",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--quantize", "int3"), "export.quantize 'int3': Input should be 'int8' or 'int4'"),
        (("--quantize", "int4", "--set", "export.group=7"), "export.group 7: Input should be"),
        (("--quantize", "int4", "--set", "export.bits=7"), "export.bits 7: Extra inputs"),
        (("--quantize", "int4", "--set", "export.asymmetric=1"), "export.asymmetric 1: Input"),
        (("--set", "export.group=64"), "export.group needs export.quantize"),
        (("--embeddings", "int4"), "export.embeddings needs export.quantize"),
        (("--quantize", "int4", "--embeddings", "int2"), "export.embeddings 'int2': Input should"),
        (("--quantize", "int4", "--group", "96"), "export.group 96: Input should be 64 or 128"),
    ],
)
def test_unknown_quantizers_are_one_line(arguments, line, capsys, tmp_path):
    for name in ("run", "plan", "tune"):
        code, out, err = command(
            capsys, name, "--suite", "tiny", "--method", "dense", *arguments, "--results", tmp_path
        )
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert line in err


def test_a_record_with_an_unknown_quantizer_is_corrupt(tmp_path):
    path = Store(tmp_path).put(record(overrides=(("export.quantize", "int4"),)))
    path.write_text(path.read_text().replace('"int4"', '"int3"'))
    with pytest.raises(BenchError, match="corrupt record: export.quantize 'int3'"):
        Store(tmp_path).load(path)


@pytest.mark.parametrize("name", ["dense", "2:4", "2:4 int4", "2:4 all"])
def test_a_record_is_exported(name, records, capsys, tmp_path):
    path = Store(tmp_path / "r").put(records[name])
    form = "int4" if records[name].cell.quantization else "bitmap"
    code, out, err = command(capsys, "export", path, "--format", form, "--out", tmp_path / "o")
    assert (code, err) == (0, "")  # nothing differs from the record
    again = export.load_folder(tmp_path / "o")
    found = count_params(again, Trainable(body=0, head=0))
    assert found.nonzero == records[name].params.nonzero
    cell = records[name].cell
    made, size = fit_cell(cell, quiet).model, records[name].bytes.embeddings
    assert all(torch.equal(again.state_dict()[n], w) for n, w in made.state_dict().items())
    assert f"embeddings: {size.stored / 1e6:.3f} MB of " in out
    assert f", {size.dense / 1e6:.3f} MB in FP32" in out
    assert f"computed {records[name].bytes.formats[form] / 1e6:.3f} MB" in out
    assert (tmp_path / "o" / "tokenizer.json").is_file()


def test_a_record_that_tells_of_another_model_is_said(records, capsys, tmp_path):
    made = records["2:4"]
    wrong = made.model_copy(
        update={
            "params": made.params.model_copy(update={"nonzero": 7}),
            "model": made.model.model_copy(update={"weights_sha256": "0"}),
            "versions": made.versions.model_copy(update={"task": 99}),
        }
    )
    path = Store(tmp_path / "r").put(wrong)
    code, _, err = command(capsys, "export", path, "--format", "csr", "--out", tmp_path / "o")
    assert code == 0
    for line in ("the record counted 7", "started from other weights", "the record is stale"):
        assert line in err
    failed = Store(tmp_path / "r").put(record(failed=True))
    code, _, err = command(capsys, "export", failed, "--format", "csr", "--out", tmp_path / "p")
    assert (code, err.count("\n")) == (2, 1)
    assert "record of a failure" in err
