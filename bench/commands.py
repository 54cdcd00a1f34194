"""What the commands of `bench.cli` do with cells, and with what there is.

Every one takes the parsed options and returns the exit code; `bench.model_commands` has those for
one model. Imports that load torch stand in the functions that need them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import gate, plan, registry, submissions
from bench.api import BenchError, Cell
from bench.cell import QUANTIZE
from bench.cli import say
from bench.parallel import Means
from bench.plan import Planned
from bench.record import parse
from bench.registry import Suite
from bench.reporting import leaderboard, pages
from bench.reporting.rows import verified
from bench.reporting.table import human
from bench.store import Store, disk_error

if TYPE_CHECKING:
    from bench.engines import Engine, OnProgress


def what_there_is(options: argparse.Namespace) -> int:
    """What there is of one kind."""
    rows: list[tuple[str, str]]
    if options.what == "suites":
        rows = [(name, registry.suite(name).description) for name in registry.suite_names()]
    elif options.what == "models":
        from bench.models import PLACES

        rows = [
            (n, p.repo + (f" @ {p.revision[:8]}" if p.revision else "")) for n, p in PLACES.items()
        ]
    elif options.what == "methods":
        found = [registry.method(name) for name in registry.names("method")]
        rows = [(m.name, f"{_first_line(m)} [{', '.join(m.patterns)}]") for m in found]
    else:
        tasks = [registry.task(name) for name in registry.names("task")]
        rows = [(t.name, f"{_first_line(t)} [{t.metric}]") for t in tasks]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:{width}}  {text}")
    return 0


def plan_cells(options: argparse.Namespace) -> int:
    """The cells and their states."""
    _, store, cells = _resolve(options)
    _show_plan(_planned(options, store, cells), store)
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Downloads what the cells need."""
    _, _, cells = _resolve(options)
    missing = _prepare(cells)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    return 2 if missing else 0


def run_cells(options: argparse.Namespace) -> int:
    """Runs what is not done, prints the table and writes the pages."""
    suite, store, cells = _resolve(options)
    planned = _planned(options, store, cells)
    if options.dry_run:
        _show_plan(planned, store)
        return 0
    cannot = _run(planned, store, partial(_engine, options, suite.means), options.fail_fast)
    if cannot == len(cells):  # nothing could be had: the lines above say it all
        return 2
    states = {cell: store.state(cell, plan.versions_of(cell)) for cell in cells}
    done = [store.get(cell) for cell in cells if states[cell] == "done"]
    if found := [record for record in done if record is not None]:
        say(leaderboard.table(found, average=suite.average))
    written = _write_pages(store, options.reports)
    others = _counted([state for state in states.values() if state != "done"])
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
    from bench import engines, isolate, progress
    from bench.claims import Claims

    missing = _prepare(todo)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    for cell, line in missing.items():
        store.put(isolate.failed(cell, "offline", line))
    ready = [cell for cell in todo if cell not in missing]
    with Claims(store) as claims, progress.bars(len(ready)) as bars:
        records = engines.drive(ready, engine(bars.step), claims)
        with contextlib.closing(records):  # ends what still runs
            for record in records:
                store.put(record)
                bars.done(record)
                if fail_fast and record.status == "failed":
                    break
    return len(missing)


def _engine(options: argparse.Namespace, means: Means, on_progress: OnProgress) -> Engine:
    from bench import engines

    if options.engine == "local":
        return engines.Local(options.jobs, on_progress, options.timeout, means)
    if not options.scheduler:
        raise BenchError("--engine dask needs --scheduler ADDRESS, as tcp://host:8786")
    from bench import cluster

    security = cluster.security(options)
    return cluster.Dask(options.scheduler, security, options.timeout, means)


def verify(options: argparse.Namespace) -> int:
    """Runs the cell of a record from elsewhere, and compares what the project found."""
    from bench import engines

    try:
        submitted = parse(options.record.read_bytes(), str(options.record))
    except OSError as error:
        raise BenchError(f"{options.record}: {error.strerror}") from None
    if submitted.status != "done" or verified(submitted):
        what = "the project's own record" if verified(submitted) else "the record of a failure"
        raise BenchError(f"{options.record} is {what}; verify takes a submission")
    cell, store = submitted.cell, Store(options.results)
    plan.budget_of(cell)
    _run(_planned(options, store, [cell]), store, partial(engines.Local, 1))
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
    from bench import measure, run

    if not options.method:
        raise BenchError("tune needs --method")
    measure.reuse_freed_memory()
    _, _, cells = _resolve(options)
    cells = [cell for cell in cells if cell.method in options.method]
    for cell in cells:
        if plan.needs_reference(cell) and not plan.trained_dir(plan.reference_of(cell)).is_dir():
            run.run_cell(plan.reference_of(cell), lambda *_: None)
        scores = run.tune_cell(cell, lambda *_: None)
        say(f"{cell}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    return 0


def _resolve(options: argparse.Namespace) -> tuple[Suite, Store, list[Cell]]:
    from bench import plan, registry

    suite = registry.suite(options.suite)
    changes: dict[str, Any] = {}
    for field, values in (
        ("tasks", options.task),
        ("patterns", options.pattern),
        ("sparsities", options.sparsity),
        ("seeds", options.seeds),
    ):
        if values:
            changes[field] = tuple(values)
    if options.model:
        from bench.models import adopt

        changes["models"] = tuple(adopt(name) for name in options.model)
    if options.budget:
        changes["budget"] = options.budget
    overrides = dict(suite.overrides) | plan.settings(options.set or ())
    if options.limit:
        overrides["budget.items"] = options.limit
    for field in ("quantize", "embeddings", "group"):
        if (value := getattr(options, field)) is not None:
            overrides[f"{QUANTIZE}{field}"] = value
    changes["overrides"] = tuple(sorted(overrides.items()))
    suite = dataclasses.replace(suite, **changes)
    cells = plan.expand(suite, options.method or (), explicit=bool(options.pattern))
    return suite, Store(options.results), cells


def _planned(options: argparse.Namespace, store: Store, cells: Sequence[Cell]) -> list[Planned]:
    flags = (getattr(options, name, False) for name in ("rerun", "retry_failed"))
    return plan.plan(cells, store, *flags)


def _show_plan(planned: Sequence[Planned], store: Store) -> None:
    from bench.estimate import Estimator, spoken, training_macs

    estimator = Estimator(store.records()[0])
    todo = [item for item in planned if item.todo]
    seconds = {item.cell: estimator.seconds(item.cell) for item in todo}
    macs = {item.cell: training_macs(item.cell) for item in todo}

    def about(times: Sequence[float | None], counts: Sequence[int | None]) -> str:
        known = [time for time in times if time is not None]
        counted = [count for count in counts if count]
        told = [f"{spoken(sum(known))}"] if known else []
        told += [f"{human(sum(counted))} training MACs"] if counted else []
        return f"about {', '.join(told)}" if told else ""

    for item in planned:
        cost = about([seconds[item.cell]], [macs[item.cell]]) if item.todo else ""
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {item.cell}  {cost}".rstrip())
    states = [item.state for item in planned]
    counts = _counted(states) if len(set(states)) > 1 else ""
    total = about(list(seconds.values()), list(macs.values()))
    unknown = sum(time is None for time in seconds.values())
    total += f"; no record tells the time of {unknown}" if 0 < unknown < len(todo) else ""
    say(f"{len(todo)} of {len(planned)} cells to run{counts}{'; ' if total else ''}{total}")


def _counted(states: Sequence[str]) -> str:
    """` (2 failed, 1 stale)`; nothing of nothing."""
    counts = Counter(states)
    return f" ({', '.join(f'{n} {state}' for state, n in counts.items())})" if counts else ""


def _prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Fetches data and weights once, before any cell starts; cells that lack something → why."""
    from bench import models

    broken: dict[tuple[str, str], str] = {}
    for kind, name in sorted({(k, getattr(c, k)) for c in cells for k in ("task", "model")}):
        try:
            if kind == "task":
                registry.task(name).prepare()
            else:
                models.prepare(name)
        except BenchError as error:
            if error.kind != "offline":
                raise
            broken[kind, name] = str(error)
    for task, model, length in sorted(
        {
            (cell.task, cell.model, plan.budget_of(cell).length)
            for cell in cells
            if ("task", cell.task) not in broken and ("model", cell.model) not in broken
        }
    ):
        models.check(model, registry.task(task), length)
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


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]
