"""The gate compares a tree of records with a baseline, so that no change of a number goes unseen.

Counts (parameters, sparsity, multiply-adds, bytes) must be equal. Scores may differ as much as the
baseline's own seeds differ. If the baseline's seeds disagree on a count, training decided it, and
it may differ as much as they do.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import stats

from bench.core.collapse import collapsed
from bench.core.errors import BenchError, first_error
from bench.core.files import disk_error, write_atomic
from bench.core.record import Record
from bench.core.record_parts import Count, Finite
from bench.core.store import path_of
from bench.core.tables import escape, markdown

LEVEL = 0.99
"""Confidence level of the interval that the mean score of equally many new seeds must meet."""

Spread = tuple[float, float]
"""Standard deviation of a score over seeds, and the t quantile for its degrees of freedom."""

Number = bool | int | Finite | str | None


class BaselineRow(BaseModel):
    """The seeds of one method, sparsity and set of parameters.

    Attributes:
        metric: name of the primary metric.
        n: number of scored items.
        seeds: the seeds, ascending.
        score: the score of each seed, as the task returned it.
        exact: values that must not change, by their path in the record; a list has one value a
            seed, where the seeds differ.
        collapsed: whether a run is no better than chance; then other rows have another spread.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    n: Count
    seeds: list[Count]
    score: list[Finite]
    exact: dict[str, Number | list[Number]]
    collapsed: bool = False

    @model_validator(mode="after")
    def _one_a_seed(self) -> BaselineRow:
        lists: list[list[Any]] = [
            self.score,
            *(v for v in self.exact.values() if isinstance(v, list)),
        ]
        if not self.seeds or any(len(values) != len(self.seeds) for values in lists):
            raise ValueError("a list does not have one value a seed")
        return self

    def values(self, name: str) -> dict[int, Number]:
        """Returns the exact value `name` of each seed; None where it is absent."""
        known = self.exact.get(name)
        per_seed = known if isinstance(known, list) else [known] * len(self.seeds)
        return dict(zip(self.seeds, per_seed, strict=True))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    rows: dict[str, BaselineRow]


@dataclass(frozen=True)
class Change:
    """One difference from the baseline; `fails` tells whether the gate rejects it."""

    row: str
    what: str
    was: str
    now: str
    fails: bool = True


def rows_of(records: Iterable[Record]) -> dict[str, BaselineRow]:
    """Returns the rows of done records, by the folder of their records."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "done":
            groups[str(path_of(record.cell).parent)].append(record)
    return {name: _row(groups[name]) for name in sorted(groups)}


def read_baseline(path: Path) -> dict[str, BaselineRow]:
    """Reads the rows of a baseline file.

    Raises:
        BenchError: there is no such file, or it is damaged.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).rows
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; --update writes a baseline") from None
    except ValidationError as error:
        raise BenchError(f"{path}: not a baseline: {first_error(error)}") from None


def baseline_json(rows: Mapping[str, BaselineRow]) -> str:
    """Returns the text of a baseline file, with one number a line for readable diffs."""
    dumped = {name: rows[name].model_dump(exclude_defaults=True) for name in sorted(rows)}
    tree = {"schema": 1, "rows": dumped}
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def update(path: Path, rows: Mapping[str, BaselineRow]) -> str:
    """Writes a new baseline and returns the changes as a unified diff.

    Raises:
        BenchError: kind `disk`: the file cannot be read or written.
    """
    new = baseline_json(rows)
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        write_atomic(path, new)
    except OSError as error:
        raise disk_error(path, error) from error
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", lineterm="", n=2)
    return "\n".join(lines)


def changes(baseline: Mapping[str, BaselineRow], rows: Mapping[str, BaselineRow]) -> list[Change]:
    """Lists the changes from `baseline` to `rows`, row by row; new rows and seeds pass."""
    by_group = spreads(baseline)
    listed = []
    for name in sorted(set(baseline) | set(rows)):
        old, new = baseline.get(name), rows.get(name)
        if new is None:
            listed.append(Change(name, "row", "there", "missing"))
        elif old is None:
            listed.append(Change(name, "row", "–", "new", fails=False))
        else:
            spread = by_group[task_and_model(name)]
            listed += [Change(name, *change) for change in _row_changes(old, new, spread)]
    return listed


def tolerance(row: BaselineRow, spread: Spread, mean: float, seeds: int, new: int) -> float:
    """Returns how far a mean over `new` seeds may be from the row's `mean` over its `seeds`.

    Arithmetic that differs in the last bit can change a score as much as another seed does.
    """
    pooled, quantile = spread
    own = statistics.stdev(row.score) if len(row.score) > 1 else 0.0
    free = quantile * max(own, pooled) * math.sqrt(1 / seeds + 1 / new)
    return max(free, 1 / max(row.n, 1), 1e-3 * abs(mean)) * (1 + 1e-9)


def verdict_text(listed: Sequence[Change], rows: int, source: str, title: str = "Gate") -> str:
    """Returns the verdict as Markdown: one line, then a table of the changes."""
    failing = [change for change in listed if change.fails]
    verdict = "failed" if failing else "passed"
    count = "1 row" if rows == 1 else f"{rows} rows"
    text = f"# {title} {verdict}\n\n{count} of {escape(source)}: "
    text += f"{len(failing)} changes fail" if failing else "no change fails"
    if passing := len(listed) - len(failing):
        text += f"; {passing} to note"
    if not listed:
        return text + "."
    header = ("row", "what", "baseline", "now", "verdict")
    table = [
        [*map(escape, (c.row, c.what, c.was, c.now)), "FAILS" if c.fails else "note"]
        for c in sorted(listed, key=lambda c: not c.fails)
    ]
    return f"{text}.\n\n{markdown(header, table)}"


def _row(records: Sequence[Record]) -> BaselineRow:
    records = sorted(records, key=lambda record: record.cell.seed)
    trees = [_exact(record) for record in records]
    exact: dict[str, Number | list[Number]] = {}
    for name in dict.fromkeys(name for tree in trees for name in tree):
        values = [tree.get(name) for tree in trees]
        exact[name] = values[0] if len({repr(v) for v in values}) == 1 else values
    scores = [record.scores for record in records if record.scores]
    return BaselineRow(
        metric=scores[0].metric,
        n=scores[0].n,
        seeds=[record.cell.seed for record in records],
        score=[_rounded(s.value) for s in scores],
        exact=exact,
        collapsed=any(map(collapsed, records)),
    )


def _exact(record: Record) -> dict[str, Number]:
    """Returns the values that must not change, by path in the record: `params.trainable.body`."""
    parts = record.model_dump(
        mode="json",
        include={
            "versions": True,
            "params": {"total", "prunable", "nonzero", "stored", "trainable"},
            "sparsity": True,
            "macs": True,
            "bytes": True,
            "budget": {"steps", "batch", "length"},
            "data": {"repo", "fingerprint"},
        },
    )
    return dict(_flat("", parts))


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterable[tuple[str, Number]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # records hold six significant digits


def task_and_model(name: str) -> str:
    """Returns the task and the model of a row, which share one spread of scores."""
    return "/".join(name.split("/")[:2])


def spreads(rows: Mapping[str, BaselineRow]) -> dict[str, Spread]:
    """Returns (pooled standard deviation over seeds, t quantile) for each task and model.

    The seeds of one row are too few to estimate a spread, so the rows of a task and model are
    pooled. Rows with collapsed runs are left out, unless there are no others.
    """
    groups: dict[str, list[BaselineRow]] = defaultdict(list)
    for name, row in rows.items():
        groups[task_and_model(name)].append(row)
    found = {}
    for group, inside in groups.items():
        pooled = [row for row in inside if not row.collapsed] or inside
        scores = [row.score for row in pooled if len(row.score) > 1]
        df = sum(len(score) - 1 for score in scores)
        squares = sum((len(score) - 1) * statistics.variance(score) for score in scores)
        quantile = float(stats.t.isf((1 - LEVEL) / 2, df)) if df else 0.0
        found[group] = (math.sqrt(squares / max(df, 1)), quantile)
    return found


def _row_changes(
    old: BaselineRow, new: BaselineRow, spread: Spread
) -> Iterable[tuple[str, str, str, bool]]:
    """Yields (what, was, now, fails) for each change of a row's seeds, counts and score."""
    if lost := sorted(set(old.seeds) - set(new.seeds)):
        yield f"seeds {', '.join(map(str, lost))}", "there", "missing", True
    if more := sorted(set(new.seeds) - set(old.seeds)):
        yield f"seeds {', '.join(map(str, more))}", "–", "new", False
    common = sorted(set(old.seeds) & set(new.seeds))
    if not common:
        return
    for name in dict.fromkeys([*old.exact, *new.exact]):
        was, now = old.values(name), new.values(name)
        before, after = [was[s] for s in common], [now[s] for s in common]
        if before != after and not _within_spread(before, after):
            yield name, _shown(before), _shown(after), True
    if (old.metric, old.n) != (new.metric, new.n):
        yield "scored on", f"{old.metric}, {old.n} items", f"{new.metric}, {new.n} items", True
        return
    scores = [dict(zip(row.seeds, row.score, strict=True)) for row in (old, new)]
    before_mean, after_mean = (statistics.fmean(s[seed] for seed in common) for s in scores)
    free = tolerance(old, spread, before_mean, len(common), len(common))
    if abs(after_mean - before_mean) > free:
        yield old.metric, f"{before_mean:.4f} ± {free:.4f}", f"{after_mean:.4f}", True


def _within_spread(before: Sequence[Number], after: Sequence[Number]) -> bool:
    """Tells whether a count on which the baseline's seeds disagree stays within their spread."""
    numbers = [v for v in [*before, *after] if isinstance(v, int | float)]
    if len(set(map(repr, before))) == 1 or len(numbers) < 2 * len(before):
        return False
    old, new = numbers[: len(before)], numbers[len(before) :]
    quantile = float(stats.t.isf((1 - LEVEL) / 2, len(old) - 1))
    free = quantile * statistics.stdev(old) * math.sqrt(2 / len(old))
    return abs(statistics.fmean(new) - statistics.fmean(old)) <= free


def _shown(values: Sequence[Number]) -> str:
    distinct = values if len(set(map(repr, values))) > 1 else values[:1]
    return ", ".join(f"{v:,}" if type(v) is int else str(v) for v in distinct)
