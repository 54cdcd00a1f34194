"""Records that someone else sends: whether they are well-formed and consistent with themselves.

That a number was measured cannot be seen from a file; that it contradicts its neighbours can. A
submission stays `unverified` in every table until the project has run the cell itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bench import plan, registry
from bench.api import BenchError
from bench.record import Record
from bench.reporting.rows import verified
from bench.store import Store

LARGEST = 16 * 2**20
"""Bytes of a file that is read at all; the largest records here have a tenth of it."""

_ROUNDING = 2e-6
"""Records hold six digits."""


def validate(folder: Path) -> tuple[int, list[str]]:
    """How many records a folder holds, and a line for everything wrong with it.

    Raises:
        BenchError: there is no such folder.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder}: no such folder")
    store, lines, records = Store(folder), [], []
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder)
        if path.is_symlink():
            lines.append(f"{where}: a link; send files")
        elif path.is_file():
            if path.stat().st_size > LARGEST:
                lines.append(f"{where}: larger than {LARGEST >> 20} MiB")
                continue
            try:
                record = store.load(path)
            except BenchError as error:
                lines.append(str(error).replace(str(path), str(where), 1))
                continue
            records.append(record)
            lines += [f"{where}: {line}" for line in problems(record)]
    return len(records), lines


def problems(record: Record) -> list[str]:
    """What is wrong with a record that parses; a line each."""
    found = list(_origin(record))
    if record.status == "done":
        found += [*_counts(record), *_scores(record), *_registered(record)]
    return found


def _origin(record: Record) -> Iterator[str]:
    if verified(record):
        yield f"origin {record.origin!r} is this project's own; name who ran the cell"
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}", record.origin):
        yield "origin is no plain name of up to 100 characters"


def _counts(record: Record) -> Iterator[str]:
    """Numbers that follow from each other (`bench.count`, `bench.storage`)."""
    params, sparsity, macs, size = record.params, record.sparsity, record.macs, record.bytes
    assert params and sparsity and macs and size  # noqa: PT018  # of a done record
    if params.nonzero > params.prunable or params.prunable > params.total:
        yield "params: nonzero <= prunable <= total does not hold"
    elif params.stored != params.total - params.prunable + params.nonzero:
        yield "params.stored is not nonzero + all that is not prunable"
    if params.prunable:
        zeros = 1 - params.nonzero / params.prunable
        if abs(sparsity.overall - zeros) > _ROUNDING:
            yield f"sparsity.overall {sparsity.overall:g} is not 1 − nonzero / prunable = {zeros:g}"
    if not (sparsity.min_layer - _ROUNDING <= sparsity.overall <= sparsity.max_layer + _ROUNDING):
        yield "sparsity: min_layer <= overall <= max_layer does not hold"
    if not sparsity.pattern_ok:
        yield f"pattern {record.cell.pattern} does not hold"
    for name in ("effective", "head", "realizable"):
        value = getattr(macs, name)
        if value is not None and value > macs.dense:
            yield f"macs.{name} is more than macs.dense"
    if record.budget and macs.tokens > record.budget.length:
        yield "macs.tokens is more than budget.length"
    if size.stored is not None and size.stored > size.dense:
        yield "bytes.stored is more than bytes.dense"
    for speed in record.speed:
        if speed.ms_p50 > speed.ms_p95:
            yield "speed.ms_p50 is more than ms_p95"


def _scores(record: Record) -> Iterator[str]:
    scores = record.scores
    assert scores is not None
    if scores.metric not in scores.all:
        yield f"scores.all lacks the metric {scores.metric!r}"
    elif scores.all[scores.metric] != scores.value:
        yield f"scores.value is not scores.all[{scores.metric!r}]"
    if scores.higher_is_better and not -1 <= scores.value <= 1:
        yield "scores.value is no fraction"
    if not scores.higher_is_better and scores.value < 0:
        yield "scores.value is negative"
    if not scores.n:
        yield "scores.n is 0"
    if scores.items and len(scores.items) != scores.n:
        yield f"scores.items are {len(scores.items)}, scores.n is {scores.n}"
    if isinstance(scores.items, str) and set(scores.items) - {"0", "1"}:
        yield "scores.items holds other characters than 0 and 1"
    elif "accuracy" in scores.all and "majority" in scores.all and isinstance(scores.items, str):
        # Classifiers state the majority's share. A mean over sets, no mean over items, has none.
        right = scores.items.count("1") / max(len(scores.items), 1)
        if scores.items and abs(scores.all["accuracy"] - right) > _ROUNDING:
            yield "scores.all['accuracy'] is not the share of right items"


def _registered(record: Record) -> Iterator[str]:
    """What the project knows of the cell's task and method, where it knows them."""
    cell = record.cell
    if cell.task not in registry.names("task") or cell.method not in registry.names("method"):
        return
    try:
        if record.budget != plan.budget_of(cell):
            yield f"budget is not the task's {cell.budget!r}"
        if record.versions != plan.versions_of(cell):
            yield "versions are not those of this checkout: run the cell again"
        plan.check_overrides(registry.method(cell.method), dict(cell.overrides))
    except BenchError as error:
        yield str(error)
        return
    task, scores = registry.task(cell.task), record.scores
    assert scores is not None
    if (scores.metric, scores.higher_is_better) != (task.metric, task.higher_is_better):
        yield f"scores.metric is {scores.metric!r}, the task's is {task.metric!r}"
