"""The gate: a tree of records against a baseline, for whoever must notice that a number moved.

What is counted (parameters, sparsity, multiply-adds, bytes) must be equal; scores may move as far
as the baseline's own seeds differ. A count on which the baseline's seeds disagree was decided by
training and is held to their spread, too.
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

from bench.core.errors import BenchError
from bench.core.files import disk_error, write_atomic
from bench.core.record import Count, Finite, Record
from bench.core.store import path_of
from bench.core.tables import escape, markdown

LEVEL = 0.99
"""Of the interval for the mean of as many other seeds, within which a score may move."""

Number = bool | int | Finite | str | None


class Row(BaseModel):
    """The seeds of one method, level and set of parameters.

    Attributes:
        n: items scored.
        seeds: ascending.
        score: one a seed, as the task returned it.
        exact: what must not move, by its place in the record; a list where the seeds differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    n: Count
    seeds: list[Count]
    score: list[Finite]
    exact: dict[str, Number | list[Number]]

    @model_validator(mode="after")
    def _one_a_seed(self) -> Row:
        lists: list[list[Any]] = [
            self.score,
            *(v for v in self.exact.values() if isinstance(v, list)),
        ]
        if not self.seeds or any(len(values) != len(self.seeds) for values in lists):
            raise ValueError("a list does not have one value a seed")
        return self

    def values(self, name: str) -> dict[int, Number]:
        """Returns what is known under `name` by seed."""
        found = self.exact.get(name)
        per_seed = found if isinstance(found, list) else [found] * len(self.seeds)
        return dict(zip(self.seeds, per_seed, strict=True))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    rows: dict[str, Row]


@dataclass(frozen=True)
class Change:
    """One difference; `fails` where the gate does not let it pass."""

    row: str
    what: str
    was: str
    now: str
    fails: bool = True


def rows_of(records: Iterable[Record]) -> dict[str, Row]:
    """Rows by the folder of their records."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "done":
            found[str(path_of(record.cell).parent)].append(record)
    return {name: _row(found[name]) for name in sorted(found)}


def read(path: Path) -> dict[str, Row]:
    """Reads a baseline file's rows.

    Raises:
        BenchError: there is none, or it is broken.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).rows
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; --update writes a baseline") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BenchError(f"{path}: no baseline: {place}: {first['msg']}".strip()) from None


def to_json(rows: Mapping[str, Row]) -> str:
    """Returns a baseline file's text: one number a line, so that its diff can be read."""
    tree = {"schema": 1, "rows": {name: rows[name].model_dump() for name in sorted(rows)}}
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def update(path: Path, rows: Mapping[str, Row]) -> str:
    """Writes a new baseline and returns what changed, as a unified diff.

    Raises:
        BenchError: kind `disk`.
    """
    new = to_json(rows)
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        write_atomic(path, new)
    except OSError as error:
        raise disk_error(path, error) from error
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", lineterm="", n=2)
    return "\n".join(lines)


def changes(baseline: Mapping[str, Row], found: Mapping[str, Row]) -> list[Change]:
    """Returns what moved, row by row; new rows and seeds are named and pass."""
    spreads = _spreads(baseline)
    listed = []
    for name in sorted(set(baseline) | set(found)):
        old, new = baseline.get(name), found.get(name)
        if new is None:
            listed.append(Change(name, "row", "there", "missing"))
        elif old is None:
            listed.append(Change(name, "row", "–", "new", fails=False))
        else:
            listed += [Change(name, *c) for c in _row_changes(old, new, *spreads[_place(name)])]
    return listed


def report(listed: Sequence[Change], rows: int, source: str, title: str = "Gate") -> str:
    """Returns the verdict in a line, then a table of what moved, in Markdown."""
    failing = [change for change in listed if change.fails]
    verdict = "failed" if failing else "passed"
    text = f"# {title} {verdict}\n\n{rows} rows of {escape(source)}: "
    text += f"{len(failing)} changes fail" if failing else "nothing moved that must not"
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


def _row(records: Sequence[Record]) -> Row:
    records = sorted(records, key=lambda record: record.cell.seed)
    trees = [_exact(record) for record in records]
    exact: dict[str, Number | list[Number]] = {}
    for name in dict.fromkeys(name for tree in trees for name in tree):
        values = [tree.get(name) for tree in trees]
        exact[name] = values[0] if len({repr(v) for v in values}) == 1 else values
    scores = [record.scores for record in records if record.scores]
    return Row(
        metric=scores[0].metric,
        n=scores[0].n,
        seeds=[record.cell.seed for record in records],
        score=[_rounded(s.value) for s in scores],
        exact=exact,
    )


def _exact(record: Record) -> dict[str, Number]:
    """Returns what must not move, by its place in the record, as `params.trainable.body`."""
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
    return float(f"{value:.6g}")  # as records hold it


def _place(name: str) -> str:
    """Returns task and model: where scores and their spread are of one kind."""
    return "/".join(name.split("/")[:2])


def _spreads(rows: Mapping[str, Row]) -> dict[str, tuple[float, float]]:
    """Returns the deviation over seeds, pooled by task and model, and its t quantile.

    Three seeds of one row know a spread badly; those of all rows together know it better.
    """
    squares: dict[str, float] = defaultdict(float)
    degrees: dict[str, int] = defaultdict(int)
    for name, row in rows.items():
        if len(row.score) > 1:
            degrees[_place(name)] += len(row.score) - 1
            squares[_place(name)] += (len(row.score) - 1) * statistics.variance(row.score)
    found = {}
    for place in {_place(name) for name in rows}:
        df = degrees[place]
        quantile = float(stats.t.isf((1 - LEVEL) / 2, df)) if df else 0.0
        found[place] = (math.sqrt(squares[place] / df) if df else 0.0, quantile)
    return found


def _row_changes(
    old: Row, new: Row, pooled: float, quantile: float
) -> Iterable[tuple[str, str, str, bool]]:
    """Yields (what, was, now, fails) of a row's seeds, counts and score."""
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
    own = statistics.stdev(old.score) if len(old.score) > 1 else 0.0
    # Arithmetic that differs in the last bit can move a score as far as another seed does.
    free = quantile * max(own, pooled) * math.sqrt(2 / len(common))
    free = max(free, 1 / max(old.n, 1), 1e-3 * abs(before_mean))
    if abs(after_mean - before_mean) > free * (1 + 1e-9):
        yield old.metric, f"{before_mean:.4f} ± {free:.4f}", f"{after_mean:.4f}", True


def _within_spread(before: Sequence[Number], after: Sequence[Number]) -> bool:
    """Whether a number on which the baseline's seeds disagree moved no further than they do."""
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
