"""Bad parameters end every command with one line, before anything is fetched."""

import typing

import pytest

from bench.cli import main
from bench.core.parameters import fields_of
from bench.planning import registry
from bench.sources import hub

METHODS = registry.names("method")


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    def fetch(*_):
        raise AssertionError("something was fetched before the parameters were checked")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "find", fetch)
    monkeypatch.setattr(hub, "load_split", fetch)


def choices(annotation):
    """The allowed texts of a Literal, also of one that may be None."""
    options = typing.get_args(annotation)
    texts = [option for option in options if isinstance(option, str)]
    return texts or [text for option in options for text in choices(option)]


def wrong_type(about):
    """A value of another type than the field's, as a user would type it."""
    return "7" if choices(about.annotation) or about.annotation is bool else "abc"


def out_of_range(about):
    """A number beside a bound of the field, None where it has none."""
    for rule in about.metadata:
        if getattr(rule, "gt", None) is not None:
            return str(rule.gt)
        if getattr(rule, "ge", None) is not None:
            return str(rule.ge - 1)
        if getattr(rule, "lt", None) is not None:
            return str(rule.lt)
        if getattr(rule, "le", None) is not None:
            return str(rule.le + 1)
    return None


def cases(name):
    """Pairs of KEY=VALUE and a part of the line that it must end with."""
    found = []
    for field, about in fields_of(registry.method(name).Params).items():
        found.append((f"{field}={wrong_type(about)}", field))
        if (number := out_of_range(about)) is not None:
            found.append((f"{field}={number}", field))
        if texts := choices(about.annotation):
            found.append((f"{field}=banana", texts[0]))
        found.append((f"{field}x=1", f"did you mean {field}" if len(field) > 2 else "no parameter"))
    return found or [("banana=1", "no parameter 'banana'")]


def one_line(capsys, *arguments):
    code = main.main(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("sparsebench: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("name", METHODS)
def test_a_bad_parameter_ends_the_plan_with_one_line(name, capsys, tmp_path):
    for setting, part in cases(name):
        line = one_line(
            capsys, "plan", "--method", name, "--set", setting, "--results", str(tmp_path)
        )
        assert name in line
        assert part in line, setting


@pytest.mark.parametrize("command", ["run", "tune", "count", "prune"])
@pytest.mark.parametrize("name", METHODS)
def test_every_command_refuses_it(name, command, capsys, tmp_path):
    if command == "prune" and registry.method(name).trains:
        pytest.skip("prune takes one-shot methods")
    setting, part = cases(name)[0]
    fixed = {
        "run": ("run", "--results", str(tmp_path / "r"), "--reports", str(tmp_path / "p")),
        "tune": ("tune", "--results", str(tmp_path / "r")),
        "count": ("count", "nobody/nothing"),
        "prune": ("prune", "nobody/nothing", "--sparsity", "0.5", "--out", str(tmp_path / "o")),
    }
    line = one_line(capsys, *fixed[command], "--method", name, "--set", setting)
    assert part in line
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_do_not_fit_each_other_are_one_line(capsys, tmp_path):
    for name, setting, part in (
        ("rosa", ("rank=0", "density=0"), "rank"),
        ("rosa", ("gradients=5000",), "gradients"),
        ("gmp", ("start=0.9", "end=0.1"), "start"),
        ("pst", ("hold=0.9", "cool=0.9"), "hold"),
    ):
        results = ("--results", str(tmp_path))
        line = one_line(capsys, "plan", "--method", name, "--set", *setting, *results)
        assert part in line
