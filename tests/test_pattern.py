"""Patterns and overrides: parsed once, written as users and records have them."""

import pytest

from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.overrides import Overrides, parse_settings
from bench.core.pattern import DENSE, UNSTRUCTURED, Pattern, default_of, parse_pattern


@pytest.mark.parametrize(
    ("text", "family", "n_m", "block", "heads", "neurons", "sparsity", "slug"),
    [
        ("dense", "dense", None, None, False, False, 0.0, "dense"),
        ("unstructured", "unstructured", None, None, False, False, None, "unstructured"),
        ("2:4", "N:M", (2, 4), None, False, False, 0.5, "2of4"),
        ("1:16", "N:M", (1, 16), None, False, False, 0.9375, "1of16"),
        ("block:16x4", "block:RxC", None, (16, 4), False, False, None, "block-16x4"),
        ("block:4x4+neurons", "block:RxC+neurons", None, (4, 4), False, True, None,
         "block-4x4-neurons"),
        ("rows", "rows", None, None, False, False, None, "rows"),
        ("heads", "heads", None, None, True, False, None, "heads"),
        ("neurons", "neurons", None, None, False, True, None, "neurons"),
        ("heads+neurons", "heads+neurons", None, None, True, True, None, "heads-neurons"),
        ("blocks", "blocks", None, None, False, False, None, "blocks"),
    ],
)  # fmt: skip
def test_a_pattern_is_parsed_once(text, family, n_m, block, heads, neurons, sparsity, slug):
    made = Pattern(text)
    assert (made.family, made.n_m, made.block) == (family, n_m, block)
    assert (made.heads, made.neurons) == (heads, neurons)
    assert (made.sparsity, made.slug, str(made)) == (sparsity, slug, text)
    assert made.blocks == (text == "blocks")
    assert made.removes_units == (heads or neurons or made.blocks)
    assert made == parse_pattern(text)
    assert made.made_by([family])
    assert made.made_by([text])


@pytest.mark.parametrize("text", ["", "tower", "2:", "heads+", "+neurons", "neurons+heads", "0:4"])
def test_what_is_no_pattern_is_named_with_what_would_be(text):
    with pytest.raises(BenchError, match="is not a pattern; use dense, unstructured, N:M as 2:4"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["4:4", "5:4"])
def test_n_m_must_prune_something(text):
    with pytest.raises(BenchError, match=f"pattern {text}: .* N must be below M"):
        parse_pattern(text)


def test_defaults_and_levels():
    assert str(default_of("N:M")) == "2:4"
    assert str(default_of("block:RxC")) == "block:16x16"
    assert default_of("rows") == Pattern("rows")
    assert UNSTRUCTURED.at(0.5) == "unstructured 0.5"
    assert (Pattern("2:4").at(0.5), DENSE.at(0.0)) == ("2:4", "dense")


FLAT = (("budget.steps", 3), ("export.group", 128), ("export.quantize", "int4"), ("lr", 0.1))


def test_overrides_are_split_once_and_come_back_flat_and_sorted():
    made = Overrides.of(reversed(FLAT))
    assert made.method == (("lr", 0.1),)
    assert made.budget == (("steps", 3),)
    assert made.export == (("group", 128), ("quantize", "int4"))
    assert made.flat == FLAT
    assert Overrides.of(made.shared.flat).method == ()
    assert str(made.quantization) == "int4/128"
    assert made | Overrides.of({"lr": 0.2}) == Overrides.of(dict(FLAT) | {"lr": 0.2})
    assert not Overrides()


def test_a_cell_keeps_its_key_whatever_its_overrides_are_given_as():
    fields = {"task": "t", "model": "m", "method": "pst", "pattern": "2:4", "sparsity": 0.5}
    made = {Cell(**fields, overrides=given).key for given in (FLAT, dict(FLAT), Overrides.of(FLAT))}
    assert len(made) == 1
    dumped = Cell(**fields, overrides=FLAT).model_dump(mode="json")
    assert dumped["pattern"] == "2:4"
    assert dumped["overrides"] == [list(pair) for pair in FLAT]
    assert Cell.model_validate(dumped).key in made


@pytest.mark.parametrize(
    ("flat", "line"),
    [
        ({"export.group": 64}, "export.group needs export.quantize: int8 or int4"),
        ({"export.quantize": "int3"}, "export.quantize 'int3': Input should be 'int8' or 'int4'"),
        (
            {"export.quantize": "int4", "export.group": 7},
            "export.group 7: Input should be 64 or 128",
        ),
        ({"export.quantize": "int4", "export.x": 7}, "export.x 7"),
    ],
)
def test_an_impossible_quantization_is_one_line(flat, line):
    with pytest.raises(BenchError, match=line):
        Overrides.of(flat)


def test_settings_are_toml_scalars_or_texts():
    found = parse_settings(["lr=1e-4", "kd=0", "on=true", "mode=soft", 'name="x y"'])
    assert found == {"lr": 1e-4, "kd": 0, "on": True, "mode": "soft", "name": "x y"}
    for wrong in ("lr", "=1", "lr=[1]"):
        with pytest.raises(BenchError, match="--set"):
            parse_settings([wrong])
