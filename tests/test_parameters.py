"""A wrong parameter of any method is one line and exit code 2, before anything is fetched.

The cases come from the fields: for each a wrong type, a number beyond each bound, an unknown
choice, and its name misspelt.
"""

import math
from typing import Literal, get_args, get_origin

import pytest

from bench.api import Field, Method
from bench.cli import main
from bench.core.errors import BenchError
from bench.core.overrides import parse_settings
from bench.core.parameters import fields_of, make_parameters, parameters
from bench.planning import registry

METHODS = registry.names("method")
ONE_SHOT = [name for name in METHODS if not registry.method(name).trains]
COMMANDS = ("plan", "run", "tune", "count", "prune")
BEYOND = {"gt": 0, "ge": -1, "lt": 0, "le": 1}
"""How far from a bound a number lies that it refuses."""


def choices(field):
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def is_number(field):
    return bool({int, float} & {field.annotation, *get_args(field.annotation)})


def wrong_values(field):
    """What a field must refuse, as a user types it, by the kind of mistake."""
    found = {}
    if choices(field):
        found["choice"] = "neither"
    elif is_number(field):
        found["type"] = "many"
    elif field.annotation is bool:
        found["type"] = "1"
    for rule in field.metadata:
        for sign, step in BEYOND.items():
            if (bound := getattr(rule, sign, None)) is not None:
                found[sign] = f"{bound + step:g}"
    return found


CASES = [
    pytest.param(name, field, value, id=f"{name}-{field}-{kind}")
    for name in METHODS
    for field, described in fields_of(registry.method(name).Params).items()
    for kind, value in wrong_values(described).items()
]


def arguments(command, name, setting):
    target = ["minilm-l6"] if command in ("count", "prune") else []
    out = ["--out", "pruned", "--sparsity", "0.5"] if command == "prune" else []
    return [command, *target, "--method", name, "--set", setting, *out]


FETCHES = (
    "bench.sources.catalog.locate",
    "bench.sources.hub.fetch",
    "bench.sources.hub.load_split",
    "bench.engine.prepare.prepare",
    "bench.pipeline.run.run_cell",
    "bench.costs.by_method.config_of",
)
"""Where the commands look for data, weights and configs first."""


class Fetched(Exception):
    """A command got as far as that."""


def fetched(*_, **__):
    raise Fetched


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command that must end with code 2 and one line, and fetch and write nothing."""

    for place in FETCHES:
        monkeypatch.setattr(place, fetched)
    monkeypatch.chdir(tmp_path)

    def line(command, name, setting):
        assert main.main(arguments(command, name, setting)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert list(tmp_path.iterdir()) == []
        (told,) = err.splitlines()
        return told

    return line


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "plan"])
def test_a_right_value_gets_as_far_as_fetching(command, refused):
    """What the other tests rely on: these commands would have fetched."""
    with pytest.raises(Fetched):
        refused(command, "wanda", "use_variant=true")


def commands_of(name):
    return [c for c in COMMANDS if c != "prune" or name in ONE_SHOT]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_a_wrong_value_names_method_field_and_value(name, field, value, refused):
    given = parse_settings([f"{field}={value}"])[field]
    for command in commands_of(name):
        told = refused(command, name, f"{field}={value}")
        start, _, allowed = told.partition(": Input should be ")
        assert start == f"sparsebench: method {name}: {field} {given!r}"
        assert allowed


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_choice_is_told_all_known_ones(name, refused):
    fields = fields_of(registry.method(name).Params)
    for field, described in fields.items():
        if known := choices(described):
            told = refused("plan", name, f"{field}=neither")
            assert all(str(choice) in told for choice in known), told


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_name_is_told_the_right_one(name, refused):
    for field in fields_of(registry.method(name).Params):
        for command in commands_of(name):
            told = refused(command, name, f"{field}x=1")
            head, _, near = told.partition("did you mean ")
            assert head == f"sparsebench: method {name} has no parameter '{field}x': "
            assert field in near.removesuffix("?").split(" or ")


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_allowed(name):
    """Pydantic does not check a default; a default that may not be typed would be a trap."""
    kind = registry.method(name).Params
    defaults = {field: described.default for field, described in fields_of(kind).items()}
    assert make_parameters(kind, defaults, name) == kind()


def test_a_plain_class_of_parameters_becomes_a_checked_one():
    class Plain(Method):
        """A method with plain parameters."""

        name = summary = "plain"

        class Params:
            """Plain."""

            rank: int = 4

        def finish(self, model):
            """Does nothing."""

    assert Plain().params.rank == 4
    with pytest.raises(BenchError, match="plain: rank 'x': Input should be a valid integer"):
        make_parameters(Plain.Params, {"rank": "x"}, "plain")


def test_a_whole_number_stands_for_a_float_but_one_is_no_truth_value():
    @parameters
    class Some:
        rate: float = Field(default=0.5, gt=0)
        on: bool = False

    assert make_parameters(Some, {"rate": 1}, "some").rate == 1.0
    with pytest.raises(BenchError, match="some: on 1: Input should be a valid boolean"):
        make_parameters(Some, {"on": 1}, "some")
    with pytest.raises(BenchError, match="some: rate nan: Input should be a finite number"):
        make_parameters(Some, {"rate": math.nan}, "some")
