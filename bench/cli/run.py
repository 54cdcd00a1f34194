"""What the commands of `bench.cli.main` do with cells, and with what there is.

Every one takes the parsed options and returns the exit code; `bench.cli.models` has those for
one model. Imports that load torch stand in the functions that need them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.output import say
from bench.cli.plan_text import counted, show_plan
from bench.cli.selection import planned, resolve
from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.files import disk_error
from bench.core.record import parse, verified
from bench.core.run_settings import RunSettings
from bench.core.store import Store
from bench.pipeline.cache import trained_dir
from bench.planning import registry
from bench.planning.job import budget_of, needs_reference, reference_of, versions_of
from bench.planning.plan import Planned
from bench.reporting import leaderboard, pages
from bench.review import gate, submissions

if TYPE_CHECKING:
    from bench.engine.scheduler import Engine, OnProgress


def plan_cells(options: argparse.Namespace) -> int:
    """The cells and their states."""
    _, store, cells = resolve(options)
    show_plan(planned(options, store, cells), store)
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Downloads what the cells need."""
    _, _, cells = resolve(options)
    missing = _prepare(cells)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    return 2 if missing else 0


def run_cells(options: argparse.Namespace) -> int:
    """Runs what is not done, prints the table and writes the pages."""
    suite, store, cells = resolve(options)
    wanted = planned(options, store, cells)
    if options.dry_run:
        show_plan(wanted, store)
        return 0
    cannot = _run(wanted, store, partial(_engine, options, suite.means), options.fail_fast)
    if cannot == len(cells):  # nothing could be had: the lines above say it all
        return 2
    states = {cell: store.state(cell, versions_of(cell)) for cell in cells}
    done = [store.get(cell) for cell in cells if states[cell] == "done"]
    if found := [record for record in done if record is not None]:
        say(leaderboard.table(found, average=suite.average))
    written = _write_pages(store, options.reports)
    others = counted([state for state in states.values() if state != "done"])
    say(
        f"\n{len(done)} of {len(cells)} cells done{others}; "
        f"records in {options.results}/, pages: {written[0]}"
    )
    return 0 if len(done) == len(cells) else 1


def _run(
    planned: Sequence[Planned],
    store: Store,
    engine: Callable[[OnProgress], Engine],
    fail_fast: bool = False,
) -> int:
    """Runs what is to be run into the store, with `fail_fast` up to the first that fails.

    Returns:
        Cells whose data or weights cannot be had.
    """
    todo = [p.cell for p in planned if p.todo]
    if not todo:
        return 0
    from bench.engine import messages, progress, scheduler
    from bench.engine.leases import Claims

    missing = _prepare(todo)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    for cell, line in missing.items():
        store.put(messages.failed(cell, "offline", line))
    ready = [cell for cell in todo if cell not in missing]
    with Claims(store) as claims, progress.bars(len(ready)) as bars:
        records = scheduler.drive(ready, engine(bars.step), claims)
        with contextlib.closing(records):  # ends what still runs
            for record in records:
                store.put(record)
                bars.done(record)
                if fail_fast and record.status == "failed":
                    break
    return len(missing)


def _engine(options: argparse.Namespace, means: RunSettings, on_progress: OnProgress) -> Engine:
    from bench.engine import local

    if options.engine == "local":
        return local.Local(options.jobs, on_progress, options.timeout, means)
    if not options.scheduler:
        raise BenchError("--engine dask needs --scheduler ADDRESS, as tcp://host:8786")
    from bench.engine import dask_engine, dask_worker

    security = dask_worker.security(options)
    return dask_engine.Dask(options.scheduler, security, options.timeout, means)


def verify(options: argparse.Namespace) -> int:
    """Runs the cell of a record from elsewhere, and compares what the project found."""
    from bench.engine import local

    try:
        submitted = parse(options.record.read_bytes(), str(options.record))
    except OSError as error:
        raise BenchError(f"{options.record}: {error.strerror}") from None
    if submitted.status != "done" or verified(submitted):
        what = "the project's own record" if verified(submitted) else "the record of a failure"
        raise BenchError(f"{options.record} is {what}; verify takes a submission")
    cell, store = submitted.cell, Store(options.results)
    budget_of(cell)
    _run(planned(options, store, [cell]), store, partial(local.Local, 1))
    own = store.get(cell)
    if own is None or own.status == "failed":
        return 1
    moved = submissions.differences(submitted, own, store.records()[0])
    say(gate.report(moved, 1, str(options.record), "Verification"))
    _write_pages(store, options.reports)
    return int(any(change.fails for change in moved))


def report(options: argparse.Namespace) -> int:
    """Writes the pages."""
    for path in _write_pages(Store(options.results), options.reports):
        say(str(path))
    return 0


def tune(options: argparse.Namespace) -> int:
    """Scores on the select slice."""
    from bench.costs import measure
    from bench.pipeline import run

    if not options.method:
        raise BenchError("tune needs --method")
    measure.reuse_freed_memory()
    _, _, cells = resolve(options)
    cells = [cell for cell in cells if cell.method in options.method]
    for cell in cells:
        if needs_reference(cell) and not trained_dir(reference_of(cell)).is_dir():
            run.run_cell(reference_of(cell), lambda *_: None)
        scores = run.tune_cell(cell, lambda *_: None)
        say(f"{cell}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    return 0


def _prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Fetches data and weights once, before any cell starts; cells that lack something → why."""
    from bench.sources import catalog, loading

    broken: dict[tuple[str, str], str] = {}
    for kind, name in sorted({(k, getattr(c, k)) for c in cells for k in ("task", "model")}):
        try:
            if kind == "task":
                registry.task(name).prepare()
            else:
                catalog.prepare(name)
        except BenchError as error:
            if error.kind != "offline":
                raise
            broken[kind, name] = str(error)
    for task, model, length in sorted(
        {
            (cell.task, cell.model, budget_of(cell).length)
            for cell in cells
            if ("task", cell.task) not in broken and ("model", cell.model) not in broken
        }
    ):
        loading.check(model, registry.task(task), length)
    return {
        cell: broken[kind, getattr(cell, kind)]
        for cell in cells
        for kind in ("task", "model")
        if (kind, getattr(cell, kind)) in broken
    }


def _write_pages(store: Store, folder: Path) -> list[Path]:
    records, problems = submissions.with_own(store)
    try:
        return pages.write_pages(records, problems, folder, store.root)
    except OSError as error:
        raise disk_error(folder, error) from error
