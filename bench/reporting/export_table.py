"""`sparsebench table`: all records as CSV, JSON or Parquet, one a row, or their means as LaTeX.

What stands in a record may come from a stranger: no cell of the CSV is a formula, no LaTeX command
survives, and a row says whether the project ran the cell itself.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tabulate import tabulate

from bench.core.collapse import collapsed
from bench.core.record import Record, number, verified
from bench.core.tables import printable
from bench.reporting import cost_tables
from bench.reporting.rows import name, ordered

Value = str | int | float | bool | None

_COUNTS = (
    *("params.total", "params.prunable", "params.nonzero", "params.stored"),
    *("params.trainable.body", "params.trainable.head"),
    *("sparsity.overall", "sparsity.min_layer", "sparsity.max_layer"),
    *("macs.dense", "macs.effective", "macs.realizable", "macs.train", "macs.tokens"),
    *("bytes.dense", "bytes.stored"),
    *("cost.train_s", "cost.prune_s", "cost.dense_s", "cost.eval_s", "cost.peak_bytes"),
)
"""Numbers of a record that get a column, in units of `bench.core.record`."""


def rows(records: Iterable[Record]) -> list[dict[str, Value]]:
    """Returns one flat row a record; scores as the task returned them."""
    return [_row(record) for record in records]


def to_csv(records: Iterable[Record]) -> str:
    """Writes comma-separated values with a header; no cell starts as a formula does."""
    found = rows(records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found[0] if found else ())
    writer.writerows([harmless(value) for value in row.values()] for row in found)
    return text.getvalue()


def to_json(records: Iterable[Record]) -> str:
    """Writes a list of objects."""
    return json.dumps(rows(records), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_latex(records: Sequence[Record]) -> str:
    """Writes one tabular: means over seeds and their sample standard deviation."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.cell.task, record.cell.model, record.cell.budget].append(record)
    lines = []
    for (task, model, budget), inside in sorted(groups.items()):
        for key, of_row in ordered(inside):
            scores = [r.scores for r in of_row if r.scores]
            values = [s.unit * s.value for s in scores]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            zeros = statistics.fmean(r.sparsity.overall for r in of_row if r.sparsity)
            names = [task, model, budget, *name(key, str)[:2], scores[0].metric]
            numbers = [str(len(values)), f"{statistics.fmean(values):.2f}{spread}"]
            lines.append([*map(printable, names), *numbers, f"{100 * zeros:.2f}"])
    header = ("task", "model", "budget", "method", "pattern", "metric", "seeds", "score", "zeros %")
    return tabulate(lines, header, tablefmt="latex", disable_numparse=True) + "\n"


def to_parquet(records: Iterable[Record]) -> bytes:
    """Writes the columns of the CSV with their types; texts are as the records have them."""
    import pandas  # takes a second to load

    return bytes(pandas.DataFrame(rows(records)).to_parquet(index=False))


FORMATS: dict[str, Callable[[Sequence[Record]], str | bytes]] = {
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
    "parquet": to_parquet,
}


def harmless(value: Value) -> Value:
    """Returns a text that no spreadsheet takes for a formula; numbers stay."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if re.match(r"\s*[=+\-@＝＋－＠]", text) else text


def _row(record: Record) -> dict[str, Value]:
    cell, scores = record.cell, record.scores
    assert scores is not None
    return {
        "task": cell.task,
        "model": cell.model,
        "method": cell.method,
        "parameters": " ".join(f"{k}={v}" for k, v in cell.overrides.method),
        "pattern": cell.pattern.text,
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "budget": cell.budget,
        "shared": str(cell.overrides.shared),
        "verified": verified(record),
        "origin": record.origin,
        "metric": scores.metric,
        "higher_is_better": scores.higher_is_better,
        "score": scores.value,
        "items": scores.n,
        "collapsed": collapsed(record),
        **{place: number(record, place) for place in _COUNTS},
        "hardware": cost_tables.hardware(record),
        "data": f"{record.data.repo} {record.data.fingerprint[:12]}" if record.data else "",
        "subset": record.data.subset if record.data else "",
        "git": record.code.git,
        "time": record.time,
    }
