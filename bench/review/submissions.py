"""Submissions: records that others send. This module checks, files and verifies them.

A file cannot prove that a number was measured. But numbers can contradict each other, or the counts
of the method on that model. Accepted records lie in their own tree,
`results/submissions/<origin>/`. Tables show them as unverified until the project runs the cell
itself; its own record then replaces them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.cell import REFERENCE
from bench.core.errors import BenchError
from bench.core.record import Record, verified
from bench.core.record_parts import Trainable
from bench.core.store import Store, path_of, slug
from bench.planning.job import Job
from bench.planning.registry import is_known
from bench.planning.setups import Setup
from bench.reporting import export_table, paired
from bench.review import gate

if TYPE_CHECKING:
    import pandas

FOLDER = "submissions"
"""Folder of submissions inside the tree of records."""

LARGEST = 16 * 2**20
"""Bytes of the largest file that is read; our largest records take a tenth of it."""

_ROUNDING = 2e-6
"""Tolerance of fractions, because records hold six significant digits."""


def validate(folder: Path) -> tuple[list[Record], list[str]]:
    """Reads and checks a folder's records; returns them, and one line for each problem.

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
    return records, lines


def accept(records: Sequence[Record], results: Path) -> list[Path]:
    """Writes valid records below `results` and returns their paths.

    They replace earlier records of the same cells from the same sender.

    Raises:
        BenchError: kind `disk`; it names the path.
    """
    return [Store(results / FOLDER / _folder(record)).put(record) for record in records]


def with_own(store: Store) -> tuple[list[Record], list[str]]:
    """Returns the project's records with the submissions of cells that it has not run.

    Returns:
        The records, and one line for each file that is neither.
    """
    records, lines = store.records()
    own = {record.cell for record in records if verified(record)}
    for folder in sorted((store.root / FOLDER).glob("*")):
        sent, broken = Store(folder).records()
        lines += broken
        for record in sent:
            if verified(record) or _folder(record) != folder.name:
                path = Path(FOLDER, folder.name, path_of(record.cell))
                lines.append(f"{path}: its origin is {record.origin!r}")
            elif record.cell not in own:
                records.append(record)
    return records, lines


def records(path: str | Path = "results") -> pandas.DataFrame:
    """Returns all records of a tree as a table, one a row, with the columns of `sparsebench table`.

    Submissions of cells that the project has not run are among them; `verified` tells them apart.
    A file that is no record is named in a warning.

    Raises:
        BenchError: there is no such folder.
    """
    import pandas  # takes a second to load

    root = Path(path).expanduser()
    if not root.is_dir():
        raise BenchError(f"{root}: no such folder; name one with records, such as results")
    found, lines = with_own(Store(root))
    for line in lines:
        warnings.warn(f"left out: {line}", stacklevel=2)
    return pandas.DataFrame(export_table.rows(found))


def differences(
    submitted: Record, rerun: Record, known: Sequence[Record] = ()
) -> list[gate.Change]:
    """Lists the changes from a submission to the project's own run of the cell, as the gate does.

    Args:
        submitted: the record to verify.
        rerun: the project's record of the same cell.
        known: the project's records. Seeds of the same task and model decide how much a score may
            differ.
    """
    baseline = gate.rows_of([submitted])
    new = gate.rows_of([rerun])
    row = path_of(rerun.cell).parent
    rest = gate.rows_of(r for r in known if path_of(r.cell).parent != row)
    moved = gate.changes(baseline | rest, new | rest)
    # The sizes of formats depend on the positions of zeros, which training decides.
    return [change for change in moved if not change.what.startswith("bytes.formats")]


def _folder(record: Record) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", slug(record.origin))


def problems(record: Record) -> list[str]:
    """Returns one line for each problem of a record that has parsed."""
    return [*_origin(record), *contradictions(record)]


def contradictions(record: Record) -> list[str]:
    """Returns one line for each number of a done record that cannot be, whoever made it."""
    if record.status != "done":
        return []
    lines = [*_counts(record), *_scores(record)]
    if is_known(record.cell):
        lines += _against_job(record, lines)
    return lines


def _origin(record: Record) -> Iterator[str]:
    if verified(record):
        yield f"origin {record.origin!r} is reserved for this project; name who ran the cell"
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}", record.origin):
        yield "origin is not a plain name of up to 100 characters"


def _counts(record: Record) -> Iterator[str]:
    """Checks numbers that follow from each other (counts and file sizes)."""
    params, sparsity, macs, size = record.params, record.sparsity, record.macs, record.bytes
    assert params and sparsity and macs and size  # noqa: PT018  # of a done record
    if params.nonzero > params.prunable or params.prunable > params.total:
        yield "params: nonzero <= prunable <= total does not hold"
    elif params.stored != params.total - params.prunable + params.nonzero:
        yield "params.stored is not nonzero + all that is not prunable"
    if params.prunable:
        whole = params.matrices or params.prunable
        zeros = (params.prunable - params.nonzero) / whole
        if abs(sparsity.overall - zeros) > _ROUNDING:
            formula = "1 − nonzero / prunable" if whole == params.prunable else "zeros / matrices"
            yield f"sparsity.overall {sparsity.overall:g} is not {formula} = {zeros:g}"
    level = sparsity.overall * (params.matrices or params.prunable) / (params.prunable or 1)
    if not (sparsity.min_layer - _ROUNDING <= level <= sparsity.max_layer + _ROUNDING):
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
        yield "scores.value is not a fraction"
    if not scores.higher_is_better and scores.value < 0:
        yield "scores.value is negative"
    if not scores.n:
        yield "scores.n is 0"
    if scores.items and len(scores.items) != scores.n:
        yield f"scores.items are {len(scores.items)}, scores.n is {scores.n}"
    elif isinstance(scores.items, str) and set(scores.items) - {"0", "1"}:
        yield "scores.items holds other characters than 0 and 1"
    elif scores.items and paired.basis_of(scores) == "seeds":
        yield "scores.value is neither the mean of scores.items nor its exponential"


def _against_job(record: Record, known: Sequence[str]) -> list[str]:
    """Checks a record against the project's task and method; `known` holds its other problems."""
    try:
        job = Job.resolve(record.cell)
    except BenchError as error:
        return [str(error)]
    wrong = list(_registered(record, job))
    # Counts need a cell that could run here.
    return wrong if wrong or known else list(_closed_forms(record, job))


def _registered(record: Record, job: Job) -> Iterator[str]:
    """Checks budget, versions and metric against the cell's task and method."""
    if record.budget != job.budget:
        yield f"budget is not the task's {job.cell.budget!r}"
    if record.versions != job.versions:
        yield "versions are not those of this checkout: run the cell again"
    task, scores = job.task, record.scores
    assert scores is not None
    if scores.split is not None:
        yield f"scores.split is {scores.split!r}: a trial of settings is no result"
    if (scores.metric, scores.higher_is_better) != (task.metric, task.higher_is_better):
        yield f"scores.metric is {scores.metric!r}, the task's is {task.metric!r}"


def _closed_forms(record: Record, job: Job) -> Iterator[str]:
    """Checks the record's counts against those of the method on the model without weights."""
    from bench.costs import by_method
    from bench.sources import architectures
    from bench.weights import targets  # load torch

    cell, params, macs, budget = record.cell, record.params, record.macs, record.budget
    assert params and macs and budget  # noqa: PT018  # of a done record
    if not architectures.ships(cell.model):
        return
    task = job.task
    try:
        kind, config = architectures.for_task(architectures.config_of(cell.model), task)
        setup = Setup(job.make_method(), cell)
        row = by_method.account(setup, budget, kind, config, kernel=False)
    except BenchError as error:
        yield str(error)
        return
    held = row.trainable
    if cell.method == REFERENCE and not task.finetunes:  # the pretrained model, as it is
        held = Trainable(body=0, head=0)
    dense = architectures.empty(kind, config)
    prunable = sum(math.prod(target.shape) for target in targets.prunable(dense))
    counted = {
        "params.prunable": (params.prunable, prunable),
        "params.trainable.body": (params.trainable.body, held.body),
        "params.trainable.head": (params.trainable.head, held.head),
        "macs.tokens": (macs.tokens, budget.length),
        "macs.dense": (macs.dense, row.dense),
    }
    for name, (stated, expected) in counted.items():
        if stated != expected:
            yield f"{name} is {stated:,}; {cell.method} on {cell.model} has {expected:,}"
