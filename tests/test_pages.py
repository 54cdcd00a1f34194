"""Figures and the HTML page: what they show, the policy, and that no record becomes markup."""

import base64
import hashlib
import itertools
import re
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.store import Store
from bench.planning import registry
from bench.reporting import boards, figures, html, pages, pareto
from bench.reporting.rows import ordered
from bench.reporting.scale import Scale
from bench.review import submissions
from tests.samples import record, study
from tests.test_submissions import HOSTILE, hostile

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).resolve().parents[1]


def beats(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


coordinate = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=30))
def test_the_frontier_is_what_nothing_beats(points):
    found = pareto.frontier(points)
    assert sorted(found) == [
        i for i, point in enumerate(points) if not any(beats(other, point) for other in points)
    ]
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def panels(records):
    return pareto.panels(ordered(records), pareto.style_numbers([r.cell.method for r in records]))


def by_name(records):
    return {panel.x: panel for panel in panels(records)}


def test_every_cost_is_a_panel_and_every_row_a_point():
    records = study()
    found = panels(records)
    assert [p.x for p in found] == [
        "sparsity, % zeros in target weights",
        "trainable parameters, without the head",
        "MACs, effective",
        "MACs, realizable",
        "bytes stored",
        "time / dense's, 1 × 64 tokens, float32",
        "time / dense's, 32 × 64 tokens, float32",
        "seconds to train and prune",
    ]
    rows = len(ordered(records))
    for panel in found[1:]:
        assert sum(len(s.points) for s in panel.series) == rows
    assert sum(len(s.points) for s in found[0].series) == rows - 1  # dense is the line across
    assert found[0].reference == pytest.approx(86.5, abs=1)


def test_what_was_not_counted_has_no_panel():
    names = by_name([record(0.5), record(0.6, method="gmp")])
    assert "MACs, realizable" not in names
    assert "bytes stored" not in names
    assert not any(name.startswith("ms") for name in names)


def test_points_are_means_and_their_spread():
    records = [record(0.5), record(0.7, seed=2), record(0.5, method="gmp")]
    (point,) = (q for s in by_name(records)["MACs, effective"].series for q in s.points if q.sd)
    assert (point.y, point.sd) == (pytest.approx(60), pytest.approx(14.142, abs=1e-3))
    assert point.note.startswith("pst unstructured 0.5: 60.00 ± 14.14 (2 seeds), 6k ")


def front(records, name="MACs, effective"):
    panel = by_name(records)[name]
    return {q.label for s in panel.series for q in s.points if q.front}


def test_where_lower_is_better_the_frontier_and_the_axis_are_turned():
    assert front([record(0.5), record(0.7, method="gmp")]) == {"gmp 50%"}
    low = [r for r in study(falls=True) if r.cell.method in ("dense", "magnitude")]
    best = min(low, key=lambda r: r.scores.value)
    assert by_name(low)["MACs, effective"].falling
    assert any(best.cell.method in label for label in front(low))


def test_an_unverified_row_is_drawn_and_never_on_the_frontier():
    sent = record(0.99).model_copy(update={"origin": "someone"})
    panel = by_name([sent, record(0.5, method="gmp")])["MACs, effective"]
    assert front([sent, record(0.5, method="gmp")]) == {"gmp 50%"}
    assert {s.kind for s in panel.series} == {"cross", "mark"}


def test_built_in_methods_look_different_and_keep_their_look():
    known = [name for name in registry.builtin("method") if name != "dense"]
    styles = pareto.style_numbers(["dense", "theirs"])
    looks = {
        (n % len(figures.COLOURS), n // len(figures.COLOURS) % len(figures.SHAPES))
        for n in styles.values()
    }
    assert len(looks) == len(styles) == len(known) + 1
    assert {k: v for k, v in styles.items() if k != "theirs"} == pareto.style_numbers([])


costs = st.floats(0, 1e12, allow_subnormal=False)


@given(st.lists(costs, min_size=1, max_size=9), st.booleans(), st.booleans())
def test_a_scale_keeps_order_and_stays_inside(values, log, turned):
    scale = Scale(values, 280.0, log, inset=8, turned=turned)
    at = [scale(v) for v in sorted(values)]
    assert at == sorted(at, reverse=turned)
    assert all(7.99 <= pixel <= 272.01 for pixel in at)
    if log:
        assert all(7.99 <= scale(tick) <= 272.01 for tick in scale.ticks())


def sheet(panels):
    return figures.sheet([figures.draw(panel) for panel in panels], "t")


def marks(drawn, kind="point"):
    return [node for node in drawn.iter() if node.get("aria-roledescription") == kind]


def place_of(mark):
    return tuple(map(float, re.findall(r"[\d.]+", mark.get("transform"))))


def test_a_sheet_is_xml_and_its_points_are_where_the_numbers_say():
    found = panels(study())
    inner = ET.fromstring(sheet(found)).findall(f"{SVG}svg")
    assert len(inner) == len(found)
    for drawn, panel in zip(inner, found, strict=True):
        places = {mark.get("aria-label"): place_of(mark) for mark in marks(drawn)}
        points = {q.note: q for s in panel.series for q in s.points}
        assert set(points) <= set(places)
        by_x = sorted(points, key=lambda note: points[note].x)
        assert all(places[a][0] <= places[b][0] for a, b in itertools.pairwise(by_x))
        by_y = sorted(points, key=lambda note: -points[note].y)
        assert all(places[a][1] <= places[b][1] for a, b in itertools.pairwise(by_y))


@pytest.mark.parametrize(
    ("values", "log"),
    [([3.0, 4.0, 9.0], False), ([3.0, 40.0, 9e5], True), ([0.0, 5.0, 7e4], True), ([5.0], True)],
)
def test_labels_are_placed_by_the_pixels_of_vega(values, log):
    points = tuple(figures.Point(v, v, 0.0, f"m {v}") for v in values)
    series = (figures.Series("m", 0, "mark", points),)
    drawn = figures.draw(
        figures.Panel("x", "y", "", series, log_x=log, log_y=log and min(values) > 0)
    )
    width = figures.WIDTH - figures.LEFT - figures.RIGHT
    x = Scale(values, width, log, 12)
    y = Scale(values, 235, log and min(values) > 0, 8, turned=True)
    for mark, value in zip(marks(ET.fromstring(drawn.svg)), values, strict=True):
        assert place_of(mark) == pytest.approx((x(value), y(value)), abs=0.06)


def test_patterns_and_unverified_rows_have_marks_of_their_own():
    made = [record(0.5), record(0.6, pattern="2:4"), record(0.9, sparsity=0.9)]
    made[2] = made[2].model_copy(update={"origin": "someone"})
    drawn = ET.fromstring(figures.draw(by_name(made)["MACs, effective"]).svg)
    looks = {mark.get("aria-label").split(":")[0]: mark for mark in marks(drawn)}
    colours = {mark.get("stroke") for mark in looks.values()}
    assert len(colours) == 1
    assert {looks[name].get("fill") for name in looks} == {*colours, "white", "none"}
    assert looks["pst unstructured 0.5"].get("fill") in colours
    assert looks["pst 2"].get("fill") == "white"
    assert looks["pst (unverified) unstructured 0.9"].get("fill") == "none"


def test_no_font_of_this_machine_moves_anything(monkeypatch):
    found = panels(study())[:2]
    plain = sheet(found)
    template = figures._template

    def other(curves):
        made = template(curves)
        return made | {"config": made["config"] | {"font": "monospace"}}

    monkeypatch.setattr(figures, "_template", other)
    assert "monospace" in sheet(found)
    assert sheet(found).replace("monospace", "sans-serif") == plain


def test_a_figure_shows_its_colours_to_every_program():
    """No style sheet, no variables: rsvg, cairosvg and resvg draw those black."""
    text = sheet(panels(study()))
    assert not re.search(r"\b(style|class|href|on\w+|src)=\"[^\"]*var|<style|currentColor", text)
    assert not re.search(r"\b(style|href|on\w+|src)=|<script|url\(", text)
    drawn = {node.get("fill") for node in ET.fromstring(text).iter()}
    assert set(figures.COLOURS) <= drawn


def write(folder, records=None, problems=()):
    found = study() if records is None else records
    return pages.write_pages(found, problems, folder / "reports", folder / "results")


def texts(folder):
    files = (path for path in (folder / "reports").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_pages_are_the_same_bytes_whatever_the_order_of_records(tmp_path):
    records = [*study(), *study("wikitext", "smollm2-135m-q4", falls=True)]
    write(tmp_path / "a", records)
    write(tmp_path / "b", records[::-1])
    first, second = texts(tmp_path / "a"), texts(tmp_path / "b")
    assert first == second
    assert {"reports/index.html", "reports/figures/quick.reviews.minilm-l6.svg"} <= set(first)
    assert b"](figures/quick.reviews.minilm-l6.svg)" in first["reports/quick.md"]


def test_a_figure_that_is_no_more_is_removed(tmp_path):
    write(tmp_path, [*study(), record(0.5, task="glue/rte")])
    write(tmp_path, study())
    assert [p.name for p in (tmp_path / "reports/figures").iterdir()] == [
        "quick.reviews.minilm-l6.svg"
    ]


def test_boards_that_differ_in_budget_have_figures_of_their_own(tmp_path):
    write(tmp_path, [record(0.5), record(0.5, overrides=(("budget.steps", 10),))])
    assert len(list((tmp_path / "reports/figures").iterdir())) == 2


class Page(HTMLParser):
    """Elements, attributes and the text of scripts and styles of a page."""

    VOID = {"meta", "link", "img", "br", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.bodies, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "style"):
            self.bodies.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.bodies[-1][2] += data
        else:
            self.words.append(data)


def the_page(folder):
    return (folder / "reports" / "index.html").read_text("utf-8")


def test_the_policy_admits_our_scripts_and_styles_by_hash_and_nothing_else(tmp_path):
    write(tmp_path)
    found = Page(the_page(tmp_path))
    (policy,) = (v for _, k, v in found.attributes if v and v.startswith("default-src"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    hashes = {"script": set(), "style": set()}
    for tag, attributes, body in found.bodies:
        if attributes.get("type") != "text/plain":
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            hashes[tag].add(f"'sha256-{digest}'")
    assert {f"{tag}-src": " ".join(found) for tag, found in hashes.items()} == rules


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    write(tmp_path)
    found = Page(the_page(tmp_path))
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert name not in ("src", "srcset", "style", "action"), (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert name != "href" or value == "#rows"
    assert not re.search(r"@import|url\(", "".join(b for t, _, b in found.bodies if t == "style"))


def figures_of(text):
    return [
        zlib.decompress(base64.b64decode(body)).decode()
        for _, attributes, body in Page(text).bodies
        if attributes.get("type") == "text/plain"
    ]


def test_the_page_holds_every_row_and_figure(tmp_path):
    records = [*study(), *study("wikitext", "smollm2-135m-q4", falls=True)]
    write(tmp_path, records)
    text = the_page(tmp_path)
    made = boards.boards(records)
    assert text.count("<tr data-b=") == sum(len(board.rows) for board in made)
    first = made[0]
    row = next(r for r in first.rows if r[0][0] == "pst")
    mean = f"{100 * sum(r.scores.value for r in row[1]) / 3:.2f}"
    assert f"<td>{mean}</td>" in text
    found = figures_of(text)
    assert len(found) == 2
    sheet = (tmp_path / "reports/figures/quick.reviews.minilm-l6.svg").read_text("utf-8")
    for drawn in found[1].removesuffix("</svg>").split("</svg>"):
        assert drawn.strip().partition(">")[2] in sheet


def test_a_page_without_records_says_so(tmp_path):
    write(tmp_path, [])
    assert "No records yet" in the_page(tmp_path)
    Page(the_page(tmp_path))


def test_a_library_of_another_shape_is_refused(monkeypatch):
    html._library.cache_clear()
    monkeypatch.setattr(html, "find_spec", lambda _: None)
    with pytest.raises(html.BenchError, match="itables is missing"):
        html._library()


EVIL = [
    *HOSTILE,
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><b>",
    "]]><!--",
    "--><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "a\u2028b\u2029c\ufffe\uffff",
    "\u200f\u061c\u2067abc",
    "x" * 500,
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_record_becomes_markup_of_page_or_figure(tmp_path, text):
    made = [hostile(text, seed=s, method=m) for m in ("theirs", "other") for s in (1, 2)]
    write(tmp_path / "evil", made, problems=[text])
    write(tmp_path / "good", [hostile("plain", seed=1), hostile("plain", seed=1, method="other")],
          problems=["plain"])  # fmt: skip
    evil, good = (the_page(tmp_path / name) for name in ("evil", "good"))
    (found, calm) = Page(evil), Page(good)
    assert found.tags == calm.tags
    names = [(tag, name) for tag, name, _ in found.attributes]
    assert names == [(tag, name) for tag, name, _ in calm.attributes]
    own = evil.partition('<script type="module">')[0]  # the library has odd characters of its own
    assert not re.search("[\u2028\u2029\u202e\u2066-\u2069\x00-\x08]", own)
    drawn = [*figures_of(evil)]
    drawn += [p.read_text("utf-8") for p in (tmp_path / "evil/reports/figures").iterdir()]
    for figure in drawn:
        tree = ET.fromstring(f"<all>{figure}</all>")
        kinds = {node.tag.rpartition("}")[2] for node in tree.iter()}
        assert kinds <= {"all", "svg", "title", "rect", "path", "line", "text", "g"}
        attributes = {name for node in tree.iter() for name in node.attrib}
        assert not {"href", "style", "src"} & attributes
        assert not any(name.startswith("on") for name in attributes)
    index = (tmp_path / "evil/reports/README.md").read_text("utf-8")
    assert "<" not in re.sub(r"\\.", "", index)


def stale(root, scratch):
    """The records of `root`, and its pages that are not what these give.

    `index.html` is not committed, and `claims.md` has a command and a test of its own.
    """
    records, problems = submissions.with_own(Store(root / "results"))
    problems = [line.replace(f"{root}/", "") for line in problems]
    write(scratch, records, problems)  # links are relative, so they are those of any place
    new, old = texts(scratch), {f"reports/{k}": v for k, v in _files(root / "reports").items()}
    return records, {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)} - {
        "reports/index.html",
        "reports/claims.md",
    }


def _files(folder):
    """The published pages; those of a run on this machine lie below them."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.*") if p.is_file()}
    return {k: p.read_bytes() for k, p in files.items() if not k.startswith("local/")}


def test_the_committed_pages_are_those_of_the_committed_records(tmp_path):
    records, names = stale(ROOT, tmp_path)
    if not records:
        pytest.skip("no records are committed")
    assert not names, "make report"


def test_stale_pages_are_found(tmp_path):
    for made in study(seeds=(1,)):
        Store(tmp_path / "results").put(made)
    records, _ = Store(tmp_path / "results").records()
    write(tmp_path, records)
    assert stale(tmp_path, tmp_path / "again") == (records, set())
    Store(tmp_path / "results").put(record(0.1234))
    _, names = stale(tmp_path, tmp_path / "again")
    assert names == {"reports/quick.md", "reports/figures/quick.reviews.minilm-l6.svg"}
