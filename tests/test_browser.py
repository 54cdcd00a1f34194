"""The HTML page in a real browser, from the disk, at the widths of a desk and of a phone."""

import os
import shutil

import pytest

from bench.reporting import looks, pages
from tests.samples import record, study
from tests.test_pages import EVIL
from tests.test_submissions import hostile

pytestmark = pytest.mark.browser

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
POINT = (
    "#figures > svg:last-of-type [aria-roledescription=point]"
    "[aria-label^='pst 2:4'][aria-label$='trained']"
)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install sparsebench[browser]"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with playwright.sync_playwright() as driver:
        # In a container Chromium cannot make its own sandbox; the page is ours.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    records = [*study(), *study("wikitext", "smollm2-135m-q4", falls=True)]
    pages.write_pages(records, ["x.json: corrupt"], folder)
    return folder / "index.html"


@pytest.fixture
def visit(chromium):
    """Opens a page; what the browser complains of or asks for elsewhere fails the test."""
    contexts, wrong = [], []

    def go(path, viewport=DESK, scheme="light", **more):
        context = chromium.new_context(
            viewport=viewport, color_scheme=scheme, offline=True, reduced_motion="reduce", **more
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda one: one.url == path.as_uri() or wrong.append(one.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#figures svg")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not wrong


def drawn(page, metric):
    """Waits for a figure; Playwright's own way would need `eval`, which the policy forbids."""
    page.locator("#figures text", has_text=metric).first.wait_for()


def centre(mark):
    box = mark.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def column(page, number):
    return page.locator(f"#rows tbody tr td:nth-child({number})").all_inner_texts()


def test_rows_are_sorted_by_a_click_on_a_column(written, visit):
    page = visit(written)
    score = page.locator("#rows thead th", has_text="score")
    shown = [float(text) for text in column(page, 3)]
    assert len(shown) == 49
    score.click()
    page.wait_for_selector("th[aria-sort=ascending]")
    assert [float(text) for text in column(page, 3)] == sorted(shown)
    score.click()
    page.wait_for_selector("th[aria-sort=descending]")
    assert [float(text) for text in column(page, 3)] == sorted(shown, reverse=True)
    page.locator("#rows thead th", has_text="trainable").click()
    page.wait_for_selector("th[aria-sort=ascending]")
    counts = [float(text) for text in column(page, 9)]
    assert counts == sorted(counts)
    assert max(counts) > 30 * min(c for c in counts if c)


def test_rows_are_found_by_words(written, visit):
    page = visit(written)
    page.locator("input[type=search]").fill("pst 2:4")
    assert column(page, 1) == ["pst"]
    assert column(page, 2) == ["2:4"]
    page.locator("input[type=search]").fill("nothing like it")
    assert "no rows" in page.locator(".dt-info").inner_text()


def test_a_table_is_chosen_with_its_figure(written, visit):
    page = visit(written)
    assert "perplexity" in page.locator("#figures").inner_text()
    page.locator("#board").select_option(label="quick · reviews · minilm-l6")
    drawn(page, "accuracy")
    assert len(column(page, 1)) == 49
    page.locator("#board").select_option(label="all tables")
    assert "1 to 50 of 98 rows" in page.locator(".dt-info").inner_text()
    assert column(page, 3)[0] == "perplexity · wikitext · smollm2-135m-q4"
    page.locator("input[type=search]").fill("reviews pst")
    assert column(page, 3) == ["quick · reviews · minilm-l6"] * 3
    assert page.locator("#figures svg").count() == 0


def test_pointing_at_a_mark_says_what_it_is_and_lights_up_its_method(written, visit):
    page = visit(written)
    mark = page.locator(POINT)
    mark.scroll_into_view_if_needed()
    page.mouse.move(*centre(mark))
    tip = page.locator("#tip")
    assert tip.inner_text().startswith("pst 2:4: ")
    assert "3 seeds" in tip.inner_text()
    lit = page.locator("#figures .on")
    assert {one.get_attribute("aria-label").split()[0] for one in lit.all()} == {"pst"}
    rows = page.locator("#rows tr.on")
    assert {one.get_attribute("data-method") for one in rows.all()} == {"pst"}
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    page.locator("#rows tbody tr").nth(3).hover()
    assert page.locator("#figures .on").count() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(written, visit, scheme):
    page = visit(written, PHONE, scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    sizes = page.evaluate(
        "[...document.querySelectorAll('#figures text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 9
    mark = page.locator(POINT)
    mark.scroll_into_view_if_needed()
    page.touchscreen.tap(*centre(mark))
    assert page.locator("#tip").inner_text().startswith("pst 2:4: ")  # and stays when lifted
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    page.locator("h1").tap()
    assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(written, visit, scheme):
    page = visit(written, scheme=scheme)
    body = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(*body) >= 4.5
    fills = page.evaluate(
        "[...document.querySelectorAll('#figures text')].map(t => getComputedStyle(t).fill)"
    )
    grounds = page.evaluate(
        "[...document.querySelectorAll('#figures rect')].map(r => getComputedStyle(r).fill)"
    )
    assert set(grounds) == {body[1]}
    for fill in set(fills):
        assert contrast(fill, body[1]) >= 4.5, fill


def test_a_figure_takes_the_theme_of_its_reader_at_once(written, visit):
    page = visit(written)
    mark = page.locator(POINT)

    def colour():
        return mark.evaluate("m => getComputedStyle(m).stroke")

    light = colour()
    page.emulate_media(color_scheme="dark")
    dark = looks.DARK["#" + "".join(f"{int(part):02x}" for part in light[4:-1].split(","))]
    assert colour() == f"rgb({', '.join(str(int(dark[i : i + 2], 16)) for i in (1, 3, 5))})"


def contrast(*colours):
    """Of two `rgb(…)`, as WCAG 2 defines it."""
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        light.append(sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(light) + 0.05) / (min(light) + 0.05)


OVERLAPS = """() => [...document.querySelectorAll('#figures > svg')].flatMap((svg) => {
  // Every label stands on a white copy of itself.
  const words = [...svg.querySelectorAll('text:not([stroke])')];
  const found = words.map((t) => {
    const box = t.getBoundingClientRect();
    return [t.textContent, { x: box.x, y: box.y, width: box.width, height: box.height }];
  });
  return found.flatMap(([a, p], i) => found.slice(i + 1).filter(([, q]) =>
    Math.min(p.x + p.width, q.x + q.width) - Math.max(p.x, q.x) > 1 &&
    Math.min(p.y + p.height, q.y + q.height) - Math.max(p.y, q.y) > 4).map(([b]) => [a, b]));
})"""


def test_no_label_lies_over_another(written, visit):
    page = visit(written)
    assert page.evaluate(OVERLAPS) == []
    page.locator("#board").select_option(index=1)
    drawn(page, "accuracy")
    assert page.evaluate(OVERLAPS) == []


def test_hostile_records_stay_text(tmp_path, visit):
    evil = [
        hostile(text, method=f"m{i}", overrides=(("note", text), ("budget.note", text)))
        for i, text in enumerate(EVIL)
    ]
    pages.write_pages([*evil, record(0.5)], EVIL, tmp_path)
    page = visit(tmp_path / "index.html")
    page.locator("#board").select_option(label="all tables")
    assert page.locator("#rows b, #rows img, #rows script").count() == 0
    text = page.locator("#rows").inner_text()
    assert "<script>alert(1)</script>" in text
    assert "&lt;b&gt;" in text
