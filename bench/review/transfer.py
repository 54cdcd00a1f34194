"""`sparsebench transfer`: what the boards here say about orders that large models have shown.

A statement (`transfer.toml`) is an order of two methods. Published tables support it to a degree,
which is counted. Each board here then agrees, disagrees or cannot tell. Where a published table
and a board have five methods of one level in common, Spearman's ρ says how alike their orders are.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

from bench.core.errors import BenchError, one_line
from bench.core.pattern import Pattern
from bench.core.record import Record, verified
from bench.core.tables import escape, markdown
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning import registry
from bench.reporting import compare
from bench.reporting.compare import Line
from bench.reporting.rows import Group, group_of, label_of
from bench.review.published import PublishedNumber, read_published

DATA = Path(__file__).with_name("transfer.toml")
MORE = Path(__file__).with_name("published_more.csv")

SUPPORTED = 0.75
"""Share of printed pairs from which on tables support an order."""
COMMON = 5
"""Methods that a published table and a board must share before their orders are compared."""
DRAWS = 10_000

Answer = Literal["agrees", "disagrees", "cannot tell", "not tested"]

LEGEND = f"""\
**printed**: pairs of perplexities of one table, level and model that have the stated order; from
`bench/review/published.csv` and `published_more.csv`. **difference**: first method minus second, in
points, with the 95 % interval of the board's column. For perplexities it is first / second, and
below 1 the first is better. *agrees*, *disagrees*: the test tells them apart, with p by Holm over
the comparisons of the two methods; *cannot tell*: it does not; *not tested*: no records at that
level, too few seeds, another sparsity than asked for, or an earlier version. **ρ**: Spearman's, of
the methods that a published table and a board have in common at one level, at least {COMMON}. Its
95 % interval is from {DRAWS:,} bootstrap draws, of methods and of seeds. Of five methods it is
rough: among all their orders, one in twelve has a ρ of 0.9 or more, up or down.
"""


class Statement(BaseModel):
    """An order of methods; `transfer.toml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    pairs: list[tuple[str, str]]
    levels: list[str] = []
    least: float = 0.0

    def holds_at(self, pattern: str, sparsity: float) -> bool:
        """Tells whether the statement is about a level."""
        if self.levels:
            return pattern in self.levels or f"{pattern} {sparsity:g}" in self.levels
        return sparsity >= self.least


class Statements(BaseModel):
    """The file: statements, and the rows here that printed labels stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: dict[str, str]
    statement: list[Statement]


class Place(NamedTuple):
    """Where numbers can be compared: one table of one source, at one level."""

    source: str
    model: str
    task: str
    pattern: str
    sparsity: float
    metric: str
    setting: str


def read_statements(path: Path = DATA) -> Statements:
    """Reads the statements.

    Raises:
        BenchError: the file is damaged.
    """
    try:
        return Statements.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BenchError(f"{path.name}: not a file of statements: {one_line(error)}") from None


def printed_tables() -> dict[Place, dict[str, float]]:
    """Returns all published numbers of pruned models, by table and label."""
    found: dict[Place, dict[str, float]] = defaultdict(dict)
    for row in (*read_published(), *read_published(MORE)):
        if row.sparsity:
            found[_place(row, row.sparsity)].setdefault(_label(row), row.value)
    return found


def _place(row: PublishedNumber, sparsity: float) -> Place:
    texts = row.source, row.model, row.task, row.pattern
    return Place(*texts, sparsity, row.metric, row.setting)


def _label(row: PublishedNumber) -> str:
    return row.label.removesuffix(f" {row.pattern}")


def support(statement: Statement, tables: dict[Place, dict[str, float]]) -> tuple[int, int]:
    """Returns how many published pairs of perplexities have the stated order, and how many are.

    What another source prints again, both numbers of a model and level, is one pair.
    """
    pairs = {
        (better, worse, *place[1:5], first, second): first < second
        for place, values in tables.items()
        if place.metric == "perplexity" and statement.holds_at(place.pattern, place.sparsity)
        for better, worse in statement.pairs
        if (first := values.get(better)) and (second := values.get(worse))
    }
    return sum(pairs.values()), len(pairs)


def findings(
    statement: Statement,
    names: dict[str, str],
    records: Sequence[Record],
    choices: Choices = NO_CHOICES,
) -> Iterator[tuple[Line, str, Answer]]:
    """Yields each comparison here that a statement is about, what is compared, and the answer."""
    known = {label_of(r.cell, choices) for r in records}
    for pair in statement.pairs:
        a, b = (names[label] for label in pair)
        if not {a, b} <= known:
            continue
        for line in compare.lines(records, a, b, choices)[0]:
            *_, pattern, sparsity, shared = line.point
            if statement.holds_at(pattern.text, sparsity) and not shared.quantization:
                yield line, f"{a} − {b}", answer(line)


def answer(line: Line) -> Answer:
    """Says what a comparison says of the order a before b."""
    if math.isnan(line.p):
        return "not tested"
    return "cannot tell" if line.winner is None else ("agrees", "disagrees")[line.winner]


def transfer_page(records: Sequence[Record], choices: Choices = NO_CHOICES) -> str:
    """Returns statements and orders, with what the boards here say, as a Markdown page."""
    found = [r for r in records if verified(r) and r.scores and not registry.is_stale(r)]
    data, tables = read_statements(), printed_tables()
    rows, said = [], []
    for statement in data.statement:
        right, pairs = support(statement, tables)
        here = list(findings(statement, data.names, found, choices))
        if right >= SUPPORTED * pairs:
            said.append(Counter(verdict for _, _, verdict in here))
        printed = f"{right} of {pairs}"
        for line, pair, verdict in here:
            where = compare.place(line.point)
            rows.append([statement.text, printed, where, pair, _difference(line), verdict])
        if not here:
            rows.append([statement.text, printed, "–", "–", "–", "not tested"])
    header = ("statement", "printed", "here", "pair", "difference (95 %)", "verdict")
    orders = [
        [*map(escape, (place.source, place.model, place.task, where)), str(n), *told]
        for place, where, n, told in _orders(tables, data.names, found, choices)
    ]
    parts = ["# What small boards say of large models", _summary(said)]
    parts += ["## Statements", markdown(header, [list(map(escape, row)) for row in rows])]
    parts += ["## Orders of methods"]
    columns = ("published", "model", "task", "here", "methods", "ρ", "95 %")
    parts += [markdown(columns, orders) if orders else f"No board shares {COMMON} methods yet."]
    return "\n\n".join([*parts, LEGEND.rstrip()])


def _summary(said: Sequence[Counter[Answer]]) -> str:
    """Counts the supported statements by what the boards say."""
    tested = [here for here in said if here.keys() - {"not tested"}]
    against = sum(here["disagrees"] > 0 for here in tested)
    agree = sum(here["agrees"] > 0 and not here["disagrees"] for here in tested)
    lines = [
        f"{len(said)} orders of two methods have the support of three in four printed pairs; "
        f"{len(tested)} of them were tested here",
        f"{agree} of these {len(tested)} hold here at one level at least, and are contradicted at "
        f"none; {against} {'is' if against == 1 else 'are'} contradicted",
        "That holds for the models and tasks below, and for no other",
    ]
    return "\n".join(f"* {line}." for line in lines)


def _difference(line: Line) -> str:
    test = line.test
    unit = 1.0 if test.ratio or line.a[0].scores is None else line.a[0].scores.unit
    if math.isnan(test.effect):
        return "–"
    digits = 3 if test.ratio else 1
    effect, low, high = (f"{unit * x:.{digits}f}" for x in (test.effect, test.low, test.high))
    return effect if math.isnan(test.p) else f"{effect} ({low} … {high})"


Order = tuple[Place, str, int, list[str]]
"""A published table, the board, the number of common methods, ρ and its interval as printed."""


def _orders(
    tables: dict[Place, dict[str, float]],
    names: dict[str, str],
    records: Sequence[Record],
    choices: Choices,
) -> Iterator[Order]:
    """Yields the comparison of each published table with each board of the same level."""
    boards: dict[tuple[Group, Pattern, float], dict[str, list[float]]] = {}
    for r in records:
        if r.scores and not r.cell.overrides.quantization:
            key = (group_of(r), r.cell.pattern, r.cell.sparsity)
            sign = 1 if r.scores.higher_is_better else -1
            values = boards.setdefault(key, {}).setdefault(label_of(r.cell, choices), [])
            values.append(sign * r.scores.value)
    for place, printed in sorted(tables.items()):
        falls = -1.0 if place.metric == "perplexity" else 1.0
        by_name = {names[k]: falls * v for k, v in printed.items() if k in names}
        for ((task, model, *_), pattern, sparsity), rows in sorted(boards.items(), key=str):
            common = sorted(by_name.keys() & rows.keys())
            same = pattern.text == place.pattern and math.isclose(sparsity, place.sparsity)
            if same and len(common) >= COMMON:
                rho, low, high = spearman([by_name[k] for k in common], [rows[k] for k in common])
                told = [f"{rho:.2f}", f"{low:.2f} … {high:.2f}"]
                yield place, f"{task} {model} {pattern.at(sparsity)}", len(common), told


def spearman(
    printed: Sequence[float], here: Sequence[Sequence[float]], draws: int = DRAWS
) -> tuple[float, float, float]:
    """Returns Spearman's ρ of two orders of methods, and its 95 % bootstrap interval.

    Args:
        printed: a number a method.
        here: scores over seeds, a list a method.
        draws: bootstrap samples; one in which all methods are the same one is left out.
    """
    x, rng = np.asarray(printed, dtype=float), np.random.default_rng(0)
    rho = float(stats.spearmanr(x, [np.mean(seeds) for seeds in here]).statistic)
    found = []
    for chosen in rng.integers(len(x), size=(draws, len(x))):
        if len(set(x[chosen])) < 2:
            continue
        y = [float(np.mean(rng.choice(here[i], len(here[i])))) for i in chosen]
        if len(set(y)) > 1:
            ranks = stats.rankdata(x[chosen]), stats.rankdata(y)
            found.append(float(np.corrcoef(*ranks)[0, 1]))
    low, high = np.quantile(found, (0.025, 0.975)) if found else (math.nan, math.nan)
    return rho, float(low), float(high)
