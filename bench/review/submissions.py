"""Records that someone else sends: whether they can be true, where they are kept, and verifying.

That a number was measured cannot be seen from a file; that it contradicts its neighbours, or what
the method must train and multiply on that model, can. Accepted records lie in a tree of their own,
`results/submissions/<origin>/`, and tables show them as unverified until the project has run the
cell itself: then its own record takes their place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.core.cell import REFERENCE
from bench.core.errors import BenchError
from bench.core.files import write_atomic
from bench.core.record import Record, Trainable, verified
from bench.core.store import Store, path_of, slug
from bench.planning.job import Job
from bench.planning.registry import is_known
from bench.planning.setups import Setup
from bench.review import gate

FOLDER = "submissions"
"""Inside the tree of records."""

LARGEST = 16 * 2**20
"""Bytes of a file that is read at all; the largest records here have a tenth of it."""

_ROUNDING = 2e-6
"""Records hold six digits."""


def validate(folder: Path) -> tuple[list[Record], list[str]]:
    """Returns a folder's records, and a line for everything wrong with them.

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
    """Files valid records below `results`; what the sender sent before is replaced.

    Raises:
        OSError: as the file system gives it.
    """
    written = []
    for record in records:
        path = results / FOLDER / _folder(record) / path_of(record.cell)
        write_atomic(path, record.to_json())
        written.append(path)
    return written


def with_own(store: Store) -> tuple[list[Record], list[str]]:
    """Returns the project's records with submissions of cells that it has not run, and problems."""
    records, lines = store.records()
    own = {record.cell for record in records if verified(record)}
    for folder in sorted((store.root / FOLDER).glob("*")):
        sent, broken = Store(folder).records()
        lines += broken
        for record in sent:
            if verified(record) or _folder(record) != folder.name:
                place = Path(FOLDER, folder.name, path_of(record.cell))
                lines.append(f"{place}: its origin is {record.origin!r}")
            elif record.cell not in own:
                records.append(record)
    return records, lines


def differences(
    submitted: Record, rerun: Record, known: Sequence[Record] = ()
) -> list[gate.Change]:
    """Returns where the project's own run of a cell departs from a submission.

    Args:
        submitted: the record to verify.
        rerun: the project's record of the same cell.
        known: the project's records; seeds of the same task and model say how far a score may move.
    """
    baseline = gate.rows_of([submitted])
    found = gate.rows_of([rerun])
    row = path_of(rerun.cell).parent
    rest = gate.rows_of(r for r in known if path_of(r.cell).parent != row)
    moved = gate.changes(baseline | rest, found | rest)
    # The sizes of formats depend on where the zeros fall, which training decides.
    return [change for change in moved if not change.what.startswith("bytes.formats")]


def _folder(record: Record) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", slug(record.origin))


def problems(record: Record) -> list[str]:
    """Returns what is wrong with a record that parses; a line each."""
    found = list(_origin(record))
    if record.status == "done":
        found += [*_counts(record), *_scores(record)]
        if is_known(record.cell):
            found += _against_job(record, found)
    return found


def _origin(record: Record) -> Iterator[str]:
    if verified(record):
        yield f"origin {record.origin!r} is this project's own; name who ran the cell"
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}", record.origin):
        yield "origin is no plain name of up to 100 characters"


def _counts(record: Record) -> Iterator[str]:
    """Numbers that follow from each other (counts and file sizes)."""
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


def _against_job(record: Record, found: Sequence[str]) -> list[str]:
    """Holds a record to what the project knows of its task and method."""
    try:
        job = Job.resolve(record.cell)
    except BenchError as error:
        return [str(error)]
    wrong = list(_registered(record, job))
    # Counting what the method must train takes a cell that could be run here.
    return wrong if wrong or found else list(_closed_forms(record, job))


def _registered(record: Record, job: Job) -> Iterator[str]:
    """Yields where budget, versions or metric are not those of the cell's task and method."""
    if record.budget != job.budget:
        yield f"budget is not the task's {job.cell.budget!r}"
    if record.versions != job.versions:
        yield "versions are not those of this checkout: run the cell again"
    task, scores = job.task, record.scores
    assert scores is not None
    if (scores.metric, scores.higher_is_better) != (task.metric, task.higher_is_better):
        yield f"scores.metric is {scores.metric!r}, the task's is {task.metric!r}"


def _closed_forms(record: Record, job: Job) -> Iterator[str]:
    """Yields where counts are not what the method must train and multiply on that model."""
    from bench.costs import by_method
    from bench.sources import architectures
    from bench.weights import targets  # load torch

    cell, params, macs, budget = record.cell, record.params, record.macs, record.budget
    assert params and macs and budget  # noqa: PT018  # of a done record
    if not architectures.ships(cell.model):
        return
    task = job.task
    config = architectures.config_of(cell.model)
    if task.head == "classification":
        config.num_labels = task.labels
    try:
        kind = architectures.class_of(config, task.head)
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
    for name, (said, found) in counted.items():
        if said != found:
            yield f"{name} is {said:,}; {cell.method} on {cell.model} has {found:,}"
