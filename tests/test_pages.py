"""The pages and the HTML page: what they show, the policy, and that no record becomes markup."""

import base64
import hashlib
import re
import shutil
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.core.store import Store
from bench.core.tuning import Choices
from bench.reporting import boards, html, looks, pages
from bench.review import submissions
from tests.samples import OLD, record, study
from tests.test_submissions import HOSTILE, hostile

ROOT = Path(__file__).resolve().parents[1]


def write(folder, records=None, problems=()):
    found = study() if records is None else records
    results = folder / "results"
    choices = Choices(results)
    return pages.write_pages(found, problems, folder / "reports", results, choices=choices)


FILES = {
    f"quick.reviews.minilm-l6{name}{theme}.svg"
    for name in ("", ".unstructured-0.5", ".unstructured-0.9", ".2of4-0.5")
    for theme in ("", ".dark")
}
"""The figures of `study`."""


def texts(folder):
    files = (path for path in (folder / "reports").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_pages_are_the_same_bytes_whatever_the_order_of_records(tmp_path):
    records = [*study(), *study("wikitext", "smollm2-135m-q4", falls=True)]
    write(tmp_path / "a", records)
    write(tmp_path / "b", records[::-1])
    first, second = texts(tmp_path / "a"), texts(tmp_path / "b")
    assert first == second
    assert {"reports/index.html", *(f"reports/figures/{name}" for name in FILES)} <= set(first)


def test_a_page_shows_each_figure_in_both_themes(tmp_path):
    write(tmp_path)
    files = texts(tmp_path)
    shown = re.findall(r'(?:srcset|src)="([^"]*)"', files["reports/quick.md"].decode())
    assert sorted(shown) == sorted(f"figures/{name}" for name in FILES)
    for dark, light in zip(shown[::2], shown[1::2], strict=True):
        assert dark == light.replace(".svg", ".dark.svg")
        plain = files[f"reports/{light}"].decode()
        assert files[f"reports/{dark}"].decode() == looks.dark(plain) != plain


def test_a_figure_that_is_no_more_is_removed(tmp_path):
    write(tmp_path, [*study(), record(0.5, task="glue/rte")])
    write(tmp_path, study())
    assert {p.name for p in (tmp_path / "reports/figures").iterdir()} == FILES


def test_boards_that_differ_in_budget_have_figures_of_their_own(tmp_path):
    write(tmp_path, [record(0.5), record(0.5, overrides=(("budget.steps", 10),))])
    assert len(list((tmp_path / "reports/figures").iterdir())) == 2 * 2  # curves, in two themes


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
    light = {name for name in FILES if "dark" not in name}
    files = {(tmp_path / "reports/figures" / name).read_text("utf-8") for name in light}
    assert sorted(found[0].split("\n")) == sorted("".join(files).rstrip("\n").split("\n"))


def test_the_page_opens_with_the_largest_board_and_tells_old_rows_of_their_own_alone(tmp_path):
    small = [record(0.5, task="glue/rte", seed=seed) for seed in (1, 2, 3)]
    old = [r.model_copy(update={"versions": OLD}) for r in study()]
    write(tmp_path, [*small, *old])
    text = the_page(tmp_path)
    first, second = re.findall(r'<section class="findings".*?</section>', text, re.DOTALL)
    assert "reviews" in first.partition("</h2>")[0]
    assert "Of an earlier version" in first
    assert "Of an earlier version" not in second
    assert text.count("Of an earlier version") == 1


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

    `index.html` is not committed; `claims.md` and `transfer.md` have tests of their own.
    """
    records, problems = submissions.with_own(Store(root / "results"))
    problems = [line.replace(f"{root}/", "") for line in problems]
    trials = root / "results" / "tuning"
    if trials.is_dir():
        shutil.copytree(trials, scratch / "results" / "tuning")
    write(scratch, records, problems)  # links are relative, so they are those of any place
    new, old = texts(scratch), {f"reports/{k}": v for k, v in _files(root / "reports").items()}
    return records, {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)} - {
        "reports/index.html",
        "reports/claims.md",
        "reports/transfer.md",
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
    curves = "reports/figures/quick.reviews.minilm-l6"
    assert names >= {"reports/quick.md", f"{curves}.svg", f"{curves}.dark.svg"}
    assert not {name for name in names if "0.9" in name or "2of4" in name}
