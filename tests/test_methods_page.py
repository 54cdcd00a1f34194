"""methods/README.md says what the classes say."""

import re
from pathlib import Path

import pytest

from bench.core.parameters import fields_of
from bench.planning import registry

PAGE = (Path(__file__).parent.parent / "methods" / "README.md").read_text(encoding="utf-8")
OWN_TABLE = [name for name in registry.builtin("method") if name != "random"]


def section(name):
    return re.search(rf"^## {re.escape(name)}\n(.*?)(?=^#+ )", PAGE, re.S | re.M)[1]


def stated(name):
    """{parameter: default as text}; a row may hold several names with one default or one each."""
    found = {}
    table = re.search(r"^\| parameter \|.*?\n\n", section(name), re.S | re.M)[0]
    for names, values in re.findall(r"^\| (`.*?`) \| ([^|]+) \|", table, re.M):
        names, values = re.findall(r"`(\w+)`", names), re.findall(r"[^\s,`]+", values)
        found |= dict(zip(names, values if len(values) > 1 else values * len(names), strict=True))
    return found


def same(text, default):
    if isinstance(default, str | bool | None):
        return text == str(default)
    above, _, below = text.partition("/")
    return float(above) / float(below or 1) == default


SHARED = stated("Reconstruction")


@pytest.mark.parametrize("name", OWN_TABLE)
def test_every_parameter_is_there_with_its_default(name):
    fields = {k: f.default for k, f in fields_of(registry.method(name).Params).items()}
    found = stated(name)
    if set(fields) >= set(SHARED):  # of all one-shot methods that calibrate
        found |= SHARED
    assert set(found) == set(fields)
    assert [k for k, v in fields.items() if not same(found[k], v)] == []


def test_every_method_has_a_section():
    assert all(section(name) for name in registry.builtin("method"))


def test_the_table_of_searches_is_that_of_the_classes():
    part = PAGE[PAGE.index("| method | what varies |") :]
    table = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", part.partition("\n\n")[0], re.M))
    (nothing,) = re.findall(r"one setting.*? weights\. (.*?) have\s+nothing to choose", PAGE, re.S)
    fixed = set(re.findall(r"`([\w-]+)`", nothing))
    for name in registry.builtin("method"):
        varied = {key for setting in registry.method(name).search for key in setting}
        assert set(re.findall(r"`(\w+)[`=]", table.get(name, ""))) == varied
        assert (name in fixed) == (not varied and name != "dense")


def test_links_within_the_page_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= anchors
