"""Figures: what they show, where words stand, and that everyone and every program can see them."""

import dataclasses
import itertools
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.planning import registry
from bench.reporting import boards, chart, figures, labels, looks, pareto
from bench.reporting.scale import Scale
from tests.samples import STUDIED, record, study

LEVELS = (("unstructured", 0.5), ("unstructured", 0.7), ("unstructured", 0.9), ("2:4", 0.5))
TIME, SHARE = "training time / dense's", "trained, % of the model's parameters"


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


def board_of(records):
    (board,) = boards.boards(records)
    return board


def drawn(records, tuned=()):
    """The figures of a board by name; settings of `tuned` methods come from trials."""
    board = board_of(records)
    chosen = {key: key[0] for key, _ in board.rows if key[0] in tuned and key[3].method}
    board = dataclasses.replace(board, labels=board.labels | chosen)
    found = pareto.figures(board, pareto.style_numbers([r.cell.method for r in records]))
    return {figure.name: figure for figure in found}


def named(panel):
    return {s.name: s for s in panel.series if s.name}


def points(panel):
    return [q for s in panel.series for q in s.points]


def trio(**changes):
    """Three methods at one level that differ in the share they train, changed by name."""
    shares = {"pst": 30, "gmp": 100, "magnitude": 0}
    values = {"pst": 0.7, "gmp": 0.8, "magnitude": 0.6}
    made = []
    for method, body in shares.items():
        more = changes.get(method, {})
        one = record(more.pop("value", values[method]), method=method, **more)
        trainable = one.params.trainable.model_copy(update={"body": body})
        params = one.params.model_copy(update={"trainable": trainable})
        made.append(one.model_copy(update={"params": params}))
    return made


def test_a_board_has_curves_and_one_figure_for_each_column():
    found = drawn(study(levels=LEVELS))
    assert list(found) == [
        "",
        "unstructured-0.5",
        "unstructured-0.7",
        "unstructured-0.9",
        "2of4-0.5",
    ]
    methods = set(STUDIED) - {"dense"}
    (curves,) = found.pop("").panels
    assert set(named(curves)) == methods
    assert all(len(s.points) == 3 for s in named(curves).values())
    assert len([s for s in curves.series if s.kind == "hollow"]) == len(methods)
    for name, figure in found.items():
        assert [panel.x for panel in figure.panels] == [TIME, SHARE]
        for panel in figure.panels:
            assert set(named(panel)) == methods | {"dense"}
            assert all(len(s.points) == 1 for s in panel.series)
            assert {s.kind for s in panel.series if s.style >= 0} == {
                "hollow" if name == "2of4-0.5" else "mark"
            }
        assert figure.reference == pytest.approx(86.5, abs=1)


def test_curves_are_placed_by_the_zeros_that_were_counted():
    made = [record(0.6), record(0.5, sparsity=0.9)]
    made[0] = made[0].model_copy(
        update={"sparsity": made[0].sparsity.model_copy(update={"overall": 0.417})}
    )
    found = drawn([*made, *trio(gmp={}, pst={"seed": 9})[1:]])
    (curves,) = found[""].panels
    assert [q.x for q in named(curves)["pst"].points] == pytest.approx([41.7, 90.0])
    assert "unstructured-0.5" not in found  # two rows of that level are left


def test_settings_that_trials_chose_do_not_split_a_method():
    rates = {0.5: 0.01, 0.7: 0.02, 0.9: 0.04}
    made = [record(0.7, sparsity=s, overrides=(("lr", r),)) for s, r in rates.items()]
    for one, level in zip(made, rates, strict=True):
        one.sparsity.__dict__["overall"] = level
    (curves,) = drawn(made, tuned=["pst"])[""].panels
    assert {s.name: len(s.points) for s in curves.series} == {"pst": 3}
    (curves,) = drawn(made)[""].panels
    assert set(named(curves)) == {f"pst lr={rate}" for rate in rates.values()}


def test_a_column_holds_only_rows_with_its_zeros():
    made = trio()
    made[0].sparsity.__dict__["overall"] = 0.52
    assert list(drawn(made)) == [""]
    made[0].sparsity.__dict__["overall"] = 0.51
    assert list(drawn(made)) == ["", "unstructured-0.5"]


def test_a_plot_needs_three_points_that_differ_in_cost():
    assert [p.x for p in drawn(trio())["unstructured-0.5"].panels] == [SHARE]  # no dense: no times
    assert list(drawn(trio()[:2])) == [""]
    same = [record(0.5 + i / 10, method=m) for i, m in enumerate(("pst", "gmp", "magnitude"))]
    assert list(drawn(same)) == [""]


def test_training_time_is_relative_to_dense_on_one_machine():
    rows = study(seeds=(1, 2))
    panel = drawn(rows)["unstructured-0.5"].panels[0]
    seconds = {"dense": [], "wanda": [], "pst": []}
    for r in rows:
        level = r.cell.pattern.at(r.cell.sparsity)
        if r.cell.method in seconds and level in ("dense", "unstructured 0.5"):
            seconds[r.cell.method].append(r.cost.train_s + r.cost.prune_s + r.cost.dense_s)
    for method in ("wanda", "pst"):
        (point,) = named(panel)[method].points
        assert point.x == pytest.approx(sum(seconds[method]) / sum(seconds["dense"]))
    assert named(panel)["dense"].points[0].x == 1


def test_points_are_means_and_their_spread():
    made = trio() + trio(pst={"value": 0.9, "seed": 2})[:1]
    panel = drawn(made)["unstructured-0.5"].panels[0]
    (point,) = named(panel)["pst"].points
    assert (point.x, point.y, point.sd) == (3, pytest.approx(80), pytest.approx(14.142, abs=1e-3))
    assert point.note == "pst unstructured 0.5: 80.00 ± 14.14 (2 seeds), 3 % trained"


def front(records):
    panel = drawn(records)["unstructured-0.5"].panels[0]
    return {s.name for s in panel.series for q in s.points if q.front}


def test_where_lower_is_better_the_frontier_and_the_axis_are_turned():
    assert front(trio()) == {"magnitude", "pst", "gmp"}
    assert front(trio(pst={"value": 0.5})) == {"magnitude", "gmp"}
    low = [
        r.model_copy(update={"scores": r.scores.model_copy(
            update={"metric": "perplexity", "higher_is_better": False})})
        for r in trio()
    ]  # fmt: skip
    assert front(low) == {"magnitude"}
    assert drawn(low)[""].falling
    assert not drawn(trio())[""].falling


def test_an_unverified_row_is_drawn_and_never_on_the_frontier():
    rows = trio(magnitude={"value": 0.99})
    assert front(rows) == {"magnitude"}
    rows[2] = rows[2].model_copy(update={"origin": "someone"})
    panel = drawn(rows)["unstructured-0.5"].panels[0]
    assert {s.name: s.kind for s in panel.series} == {
        "pst": "mark", "gmp": "mark", "magnitude (unverified)": "cross",
    }  # fmt: skip
    assert front(rows) == {"pst", "gmp"}


def test_rows_with_collapsed_runs_are_named_and_have_no_spread():
    rows = [*trio(), record(0.9, method="wanda"), record(0.5, method="wanda", seed=2)]
    for r in rows:
        r.scores.all["majority"] = 0.45
    found = drawn(rows)
    assert "wanda" not in named(found["unstructured-0.5"].panels[0])
    assert found["unstructured-0.5"].note == "With collapsed runs, not drawn: wanda."
    assert "not drawn: wanda" in figures.draw(found["unstructured-0.5"]).svg
    (point,) = named(found[""].panels[0])["wanda"].points
    assert (point.y, point.sd) == (pytest.approx(70), 0)
    assert "collapsed 1 of 2" in point.note


def test_a_board_without_zeros_has_no_figure():
    made = [record(method=m, pattern="dense", sparsity=0.0) for m in ("dense", "lora")]
    for one in made:
        one.sparsity.__dict__["overall"] = 0.0
    assert drawn(made) == {}


def test_built_in_methods_look_different_and_keep_their_look():
    known = [name for name in registry.builtin("method") if name != "dense"]
    styles = pareto.style_numbers(["dense", "theirs"])
    shown = {str(looks.look(number, "mark")) for number in styles.values()}
    assert len(shown) == len(styles) == len(known) + 1
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


def test_zeros_stand_apart_on_a_logarithmic_axis():
    scale = Scale([0.0, 0.3, 3.0, 100.0], 300.0, True, inset=10)
    decade = scale(3.0) - scale(0.3)
    assert scale(0.3) - scale(0.0) > 0.5 * decade


@pytest.mark.parametrize("log", [False, True])
def test_numbers_that_rounding_sets_apart_are_one(log):
    scale = Scale([69.9999, 70.0], 300.0, log, inset=10)
    assert abs(scale(69.9999) - scale(70.0)) < 1
    assert scale(70.0) == pytest.approx(150, abs=5)
    apart = Scale([69.9, 70.0], 300.0, log, inset=10)
    assert (apart(69.9), apart(70.0)) == (pytest.approx(10), pytest.approx(290))


def parsed(figure):
    return ET.fromstring(figures.draw(figure).svg)


def marks(node, kind="point"):
    return [one for one in node.iter() if one.get("aria-roledescription") == kind]


def place_of(mark):
    return tuple(map(float, re.findall(r"[\d.]+", mark.get("transform"))))


def panels_of(tree):
    return [node for node in tree if node.tag.endswith("}g")]


@pytest.mark.parametrize("falls", [False, True])
def test_points_are_where_the_numbers_say(falls):
    for figure in drawn(study(falls=falls)).values():
        shown = panels_of(parsed(figure))
        assert len(shown) == len(figure.panels)
        heights = []
        for node, panel in zip(shown, figure.panels, strict=True):
            places = {mark.get("aria-label"): place_of(mark) for mark in marks(node)}
            wanted = {q.note: q for q in points(panel)}
            assert set(wanted) <= set(places)
            by_x = sorted(wanted, key=lambda note: wanted[note].x)
            assert all(places[a][0] <= places[b][0] for a, b in itertools.pairwise(by_x))
            by_y = sorted(wanted, key=lambda note: wanted[note].y * (1 if falls else -1))
            assert all(places[a][1] <= places[b][1] for a, b in itertools.pairwise(by_y))
            heights.append({n.split(",")[0]: at[1] for n, at in places.items()})
        assert all(h == heights[0] for h in heights)  # one y axis


@pytest.mark.parametrize(
    ("values", "log"),
    [([3.0, 4.0, 9.0], False), ([3.0, 40.0, 9e5], True), ([0.0, 5.0, 7e4], True), ([5.0], True)],
)
def test_labels_are_placed_by_the_pixels_of_vega(values, log):
    made = tuple(figures.Point(v, v, 0.0, f"m {v}") for v in values)
    panel = figures.Panel("x", (figures.Series("m", 0, "mark", made),), log_x=log)
    log_y = log and min(values) > 0
    tree = parsed(figures.Figure("", "y", (panel,), log_y=log_y))
    x = Scale(values, figures.WIDTH - figures.LEFT - figures.RIGHT, log, 12)
    y = Scale(values, figures.LOW, log_y, 10, turned=True)
    for mark, value in zip(marks(tree), values, strict=True):
        assert place_of(mark) == pytest.approx((x(value), y(value)), abs=0.06)


def test_patterns_and_unverified_rows_have_marks_of_their_own():
    made = [record(0.5), record(0.6, pattern="2:4"), record(0.9, sparsity=0.9)]
    made[2] = made[2].model_copy(update={"origin": "someone"})
    shown = {mark.get("aria-label"): mark for mark in marks(parsed(drawn(made)[""]))}
    found = {label.split(":")[0]: mark for label, mark in shown.items() if "zeros" in label}
    colours = {mark.get("stroke") for mark in found.values()}
    assert len(colours) == 1
    assert found["pst unstructured 0.5"].get("fill") in colours
    assert found["pst 2"].get("fill") == looks.PAPER
    assert found["pst (unverified) unstructured 0.9"].get("fill") == "none"


def text_of(records):
    return "".join(figures.draw(figure).svg for figure in drawn(records).values())


def test_no_font_of_this_machine_moves_anything(monkeypatch):
    plain = text_of(study())
    template = chart.template

    def other(curves):
        made = template(curves)
        return made | {"config": made["config"] | {"font": "monospace"}}

    monkeypatch.setattr(chart, "template", other)
    again = text_of(study())
    assert "monospace" in again
    assert again.replace("monospace", "sans-serif") == plain


@pytest.mark.parametrize("theme", [str, looks.dark])
def test_a_figure_shows_its_colours_to_every_program(theme):
    """No style sheet, no variables: rsvg, cairosvg and resvg draw those black."""
    text = theme(text_of(study()))
    assert not re.search(r"\b(style|href|on\w+|src)=|<style|<script|url\(|currentColor|var\(", text)
    fills = set(re.findall(r'(?:fill|stroke)="([^"]*)"', text)) - {"none", "transparent"}
    assert fills == {theme(f' fill="{c}"')[7:-1] for c in looks.DARK}


@pytest.mark.skipif(shutil.which("rsvg-convert") is None, reason="apt install librsvg2-bin")
def test_rsvg_draws_the_marks(tmp_path):
    figure = figures.draw(drawn(study())["unstructured-0.5"])
    (tmp_path / "a.svg").write_text(looks.dark(figure.svg))
    subprocess.run(["rsvg-convert", "a.svg", "-o", "a.png"], cwd=tmp_path, check=True)
    image = pytest.importorskip("PIL.Image").open(tmp_path / "a.png").convert("RGB")
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in image.getcolors(10**6)}
    assert image.width == figures.WIDTH
    assert set(looks.DARK.values()) - colours <= {looks.DARK[looks.SOFT]}  # only in text


def linear(colour):
    rgb = "ffffff" if colour == "white" else colour[1:]
    parts = np.array([int(rgb[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """Of two colours, as WCAG 2 defines it."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


SIGHT = {
    "all colours": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
"""What is seen of linear RGB: Machado, Oliveira and Fernandes 2009, full severity."""


def oklab(rgb):
    """A space in which the distance of two colours is how different they look (Ottosson 2020)."""
    cones = np.cbrt(np.clip(rgb, 0, 1) @ np.array([
        [0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005]]))  # fmt: skip
    return cones @ np.array([
        [0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660]])  # fmt: skip


@pytest.mark.parametrize("theme", [lambda c: c, looks.DARK.get])
def test_everyone_can_tell_colours_from_each_other_and_from_the_ground(theme):
    paper, ink, soft = map(theme, (looks.PAPER, looks.INK, looks.SOFT))
    colours = [ink, *map(theme, looks.COLOURS)]
    assert min(contrast(c, paper) for c in colours) >= 3
    assert min(contrast(c, paper) for c in (ink, soft)) >= 4.5
    for matrix in SIGHT.values():
        seen = [oklab(matrix @ linear(c)) for c in colours]
        assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 0.09


def test_the_dark_theme_is_the_same_figure():
    text = text_of(study())
    back = {dark: light for light, dark in looks.DARK.items()}
    assert len(back) == len(looks.DARK)
    shown = looks.dark(text)
    assert re.sub(r'"(#[0-9a-f]{6})"', lambda m: f'"{back.get(m[1], m[1])}"', shown) == text


def test_rules_of_the_page_are_those_of_the_files():
    rules = looks.dark_rules("#f")
    found = re.findall(r'#f \[(fill|stroke)="([^"]*)"\]\{\1:([^}]*)\}', rules)
    assert {(part, light): dark for part, light, dark in found} == {
        (part, light): dark for light, dark in looks.DARK.items() for part in ("fill", "stroke")
    }
    assert rules.startswith("@media (prefers-color-scheme: dark){")


place = st.floats(0, 300, allow_subnormal=False)


@given(st.lists(place, max_size=25).map(sorted))
def test_lines_of_text_keep_apart_and_in_order(wanted):
    found = labels.apart(wanted, 300)
    assert len(found) == len(wanted)
    assert all(b - a >= labels.LINE - 1e-6 for a, b in itertools.pairwise(found))
    assert all(y <= 300 + 1e-6 for y in found)
    if all(b - a >= labels.LINE for a, b in itertools.pairwise(wanted)):
        assert found == pytest.approx(wanted)
    elif labels.LINE * len(wanted) < 200 and all(100 <= y <= 200 for y in wanted):
        assert sum(found) == pytest.approx(sum(wanted))  # no way up or down is preferred


def box_of(label):
    wide = labels.wide_of(label.text)
    left = label.x - wide if label.left else label.x
    return left, label.y - 6, left + wide, label.y + 6


spots = st.lists(
    st.builds(
        labels.Spot, st.sampled_from(["", "pst", "magnitude", "l0"]), place, place, st.booleans()
    ),
    max_size=18,
)


@given(spots)
def test_no_label_lies_on_another_or_on_a_point_or_outside(found):
    placed = labels.beside(found, 300, 300)
    shown = [label for label in placed if label]
    boxes = [box_of(label) for label in shown]
    for a, b in itertools.combinations(boxes, 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] - 0.5 and b[1] < a[3] - 0.5)
    for left, top, right, bottom in boxes:
        assert -2.01 <= left <= right <= 302.01
        assert -15 <= top <= bottom <= 302.01
        assert not any(left < s.x < right and top < s.y < bottom for s in found)
    for label in shown:
        if label.lead:
            x, y = label.lead[2], label.lead[3]
            near = box_of(label)
            assert near[0] - 3 <= x <= near[2] + 3
            assert near[1] <= y <= near[3]
    assert all(label is None for s, label in zip(found, placed, strict=True) if not s.text)


def test_every_point_of_a_full_board_has_its_label():
    for figure in drawn(study(levels=LEVELS, seeds=(1, 2, 3, 4, 5))).values():
        for node, panel in zip(panels_of(parsed(figure)), figure.panels, strict=True):
            words = {text.text for text in node.iter() if text.tag.endswith("}text")}
            assert words >= set(named(panel))
