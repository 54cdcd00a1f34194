"""`sparsebench claims`: papers' claims beside the counts and measurements of this suite.

Claims (`claims.toml`) and published numbers (`published.csv`) are data, and never rows of a
leaderboard. *Reproduced* needs the paper's model and budget. On another model or in a shorter run
an order of two methods holds or fails *elsewhere*; a number is shown there without a verdict.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.core.cell import Budget
from bench.core.errors import BenchError, one_line
from bench.core.overrides import Overrides, Scalar
from bench.core.pattern import Pattern, PatternField
from bench.core.record import Record
from bench.core.tables import escape, markdown
from bench.core.tuning import NO_CHOICES, Choices
from bench.planning import registry
from bench.planning.plan import expand
from bench.planning.setups import setups
from bench.planning.suites import Suite, load_suite
from bench.reporting import compare
from bench.reporting.boards import counted, stands_apart
from bench.reporting.compare import Line
from bench.reporting.rows import higher, label_of, mean, method_name
from bench.review import published
from bench.review.published import FULL, NOT, UNTESTED, Finding, Verdict

if TYPE_CHECKING:
    from bench.costs.by_method import Account

DATA = Path(__file__).with_name("claims.toml")

LEGEND = f"""\
**preset**: the suite whose cells test the claim, `make bench SUITE=paper-pst`.
**verdict**: *reproduced*: counted, or measured on the paper's model with the budget `{FULL}`, and
the printed number (or order) lies in the 95 % interval; *{NOT}*: it lies outside; *undecided*:
the interval holds both. *holds elsewhere*, *fails elsewhere*, *undecided elsewhere*: the same for
an order of two methods on the model and budget that are named. They do not judge the paper's own
experiment.
*{UNTESTED}*: there is no such cell, too few seeds, or something else differs, which is named.
Published numbers stand here only, never in a leaderboard. (H): read in the source itself; (M): read
at one remove; (L): from memory.
"""


Recipe = tuple[str, str, str, Overrides]
"""Task, model, name of the budget, its overrides."""


class Claim(BaseModel):
    """One sentence of a paper; `claims.toml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: str
    statement: str
    source: str
    check: Literal["share", "below", "saved", "gap", "better", "comparable"]
    method: str
    models: list[str]
    printed: str = ""
    against: str = ""
    tasks: list[str] = []
    pattern: PatternField | None = None
    sparsity: float = 0.5
    overrides: dict[str, Scalar] = {}
    margin: float = 0.0
    preset: str = ""


def read_claims(path: Path = DATA) -> list[Claim]:
    """Reads the claims of a file, by default those of the repository.

    Raises:
        BenchError: the file is damaged.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        return [Claim.model_validate(claim) for claim in tree["claim"]]
    except (tomllib.TOMLDecodeError, KeyError, ValidationError) as error:
        raise BenchError(f"{path.name}: not a file of claims: {one_line(error)}") from None


def findings(
    claim: Claim, records: Sequence[Record], choices: Choices = NO_CHOICES
) -> list[Finding]:
    """Checks a claim; returns one finding for each model or cell."""
    if claim.check in ("share", "below", "saved"):
        return [_counted(claim, model) for model in claim.models]
    preset = load_suite(claim.preset) if claim.preset else None
    names = {label_of(r.cell, choices) for r in records}
    pairs = product(*(spellings(name, preset) & names for name in (claim.method, claim.against)))
    wanted = [r for r in records if not claim.tasks or r.cell.task in claim.tasks]
    found, recipes = [], _recipes(preset)
    for a, b in sorted(pairs):
        try:
            lines, _ = compare.lines(wanted, a, b, choices)
        except BenchError:  # both have records, but not of these tasks
            continue
        found += [_measured(claim, line, recipes) for line in lines]
    untested = "no records"
    if {claim.method, claim.against} <= names:
        where = f" of {' or '.join(claim.tasks)}" if claim.tasks else ""
        untested = f"no cell{where} that both have"
    return found or [Finding("–", "", untested, UNTESTED)]


def spellings(name: str, preset: Suite | None) -> set[str]:
    """Returns a method's names in tables: its own, and those with a recipe of the preset.

    `pst` is `pst lr=3e-05` where the preset trains it with that rate; `ast slorb=mean` is a
    variant and keeps apart from `ast`.
    """
    return {name} | {
        method_name(method, grid.params.get(method, Overrides()) | grid.overrides)
        for grid in (preset.grids if preset else ())
        for method in grid.methods
        if method_name(method, grid.overrides) == name
    }


def _recipes(preset: Suite | None) -> set[Recipe]:
    """Returns what the preset's cells may spend: task, model, budget and its overrides."""
    return {
        (job.cell.task, job.cell.model, job.cell.budget, job.cell.overrides.of_budget)
        for job in (expand(preset) if preset else ())
    }


def claims_page(records: Sequence[Record], choices: Choices = NO_CHOICES) -> str:
    """Returns all claims and all published numbers as a Markdown page."""
    header = (
        "paper",
        "claim",
        "preset",
        "printed",
        "here",
        "95 %",
        "where, what differs",
        "verdict",
        "source",
    )
    rows = []
    for claim in read_claims():
        for finding in findings(claim, records, choices):
            rows.append(
                [
                    *map(escape, (claim.paper, claim.statement)),
                    *map(escape, (claim.preset or "–", claim.printed or "–")),
                    *map(escape, (finding.here, finding.interval or "–", finding.where)),
                    finding.verdict,
                    escape(claim.source),
                ]
            )
    parts = ["# Claims", markdown(header, rows), "## Published numbers"]
    return "\n\n".join([*parts, published.section(records), LEGEND.rstrip()])


def _counted(claim: Claim, model: str) -> Finding:
    """Checks a claim about counts, on the model without weights."""
    overrides = tuple(sorted(claim.overrides.items()))
    account, pattern = _account(claim.method, claim.pattern, claim.sparsity, overrides, model)
    if claim.check == "saved":
        value = (
            None if account.realizable is None else 100 * (1 - account.realizable / account.dense)
        )
    else:
        value = None if account.published is None else 100 * account.published.ours
    where = f"{model}, {pattern}, counted"
    if value is None:
        return Finding("–", "", f"{where}: training decides", UNTESTED)
    if claim.check == "below":
        holds = value < float(claim.printed)
    else:
        digits = len(claim.printed.partition(".")[2])
        holds = f"{value:.{digits}f}" == claim.printed
    return Finding(f"{value:.3f}", "", where, "reproduced" if holds else NOT)


@functools.cache
def _account(
    method: str,
    pattern: Pattern | None,
    sparsity: float,
    overrides: tuple[tuple[str, Scalar], ...],
    model: str,
) -> tuple[Account, Pattern]:
    """Returns what a method costs on a model without weights, and its pattern there."""
    # These load torch.
    from bench.costs import by_method
    from bench.sources import architectures

    config = architectures.config_of(model)
    setup = setups([method], pattern, sparsity, dict(overrides))[0]
    budget = Budget(steps=by_method.STEPS, batch=32, length=128)
    kind = architectures.class_of(config)
    account = by_method.account(setup, budget, kind, config, kernel=False)
    return account, setup.cell.pattern


def _measured(claim: Claim, line: Line, recipes: set[Recipe]) -> Finding:
    """Checks a claim about scores at one cell."""
    task, model, budget, *_, shared = line.point
    elsewhere = [] if model in claim.models else ["another model"]
    elsewhere += [] if budget == FULL else [f"budget {budget}"]
    if not elsewhere and recipes and (task, model, budget, shared.of_budget) not in recipes:
        elsewhere.append(f"another budget than {claim.preset}'s")
    old = any(registry.is_stale(r) for r in (*line.a, *line.b))
    test, rises = line.test, higher(line.a)
    stale = ["records of an earlier version"] if old else []
    sizes = [
        f"{side[0].cell.method} has {100 * counted(side):.1f} % zeros"
        for side in (line.a, line.b)
        if stands_apart(side)
    ]
    where = "; ".join([compare.place(line.point), *elsewhere, *sizes, *stale])
    if math.isnan(test.p):
        return Finding("–", "", f"{where}; {test.reason}", UNTESTED)
    assert line.a[0].scores is not None
    unit = line.a[0].scores.unit
    # Effects become losses: in points, or in percent of the perplexity.
    lost = partial(_lost, ratio=test.ratio, rises=rises, unit=unit)
    effect, ends = lost(test.effect), sorted((lost(test.low), lost(test.high)))
    shown = "%" if test.ratio else "points"
    if claim.check == "gap" and test.ratio:
        # The paper prints a difference of perplexities.
        base = mean(line.b)
        effect, shown = base * effect / 100, "perplexity"
        ends = [base * end / 100 for end in ends]
    verdict = UNTESTED if old else _elsewhere(claim, ends) if elsewhere else _verdict(claim, ends)
    word = "worse"
    if effect < 0:
        word, effect, ends = "better", -effect, [-end for end in reversed(ends)]
    interval = f"{ends[0]:.3g} … {ends[1]:.3g}"
    return Finding(f"{effect:.3g} {shown} {word}", interval, where, verdict)


def _lost(value: float, ratio: bool, rises: bool, unit: int) -> float:
    change = 100 * (value - 1) if ratio else unit * value
    return -change if rises else change


def _verdict(claim: Claim, lost: Sequence[float]) -> Verdict:
    """Returns the verdict that follows from the interval (low, high) of the method's loss."""
    low, high = lost
    if claim.check == "gap":
        return "reproduced" if low <= float(claim.printed) <= high else NOT
    if high < claim.margin:
        return "reproduced"
    return NOT if low > claim.margin else "undecided"


def _elsewhere(claim: Claim, lost: Sequence[float]) -> Verdict:
    """Returns what an order says on another model or budget; a printed number says nothing."""
    if claim.check == "gap":
        return UNTESTED
    said: dict[Verdict, Verdict] = {"reproduced": "holds elsewhere", NOT: "fails elsewhere"}
    return said.get(_verdict(claim, lost), "undecided elsewhere")
