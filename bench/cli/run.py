"""Commands that run cells: plan, run, fetch, tune, verify."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.flags import add_command, add_folders, add_tls, positive
from bench.cli.output import say, warn
from bench.cli.plan_text import Device, counted, show_plan
from bench.cli.selection import add_retry, add_selection, add_smoke, planned, resolve
from bench.cli.smoke import run_smoke

if TYPE_CHECKING:
    from bench.core.run_settings import RunSettings
    from bench.core.store import Store
    from bench.engine.scheduler import Engine, OnProgress
    from bench.planning.plan import Planned


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
    _add_plan(commands)
    _add_run(commands)
    fetch = add_command(
        commands,
        "fetch",
        fetch_sources,
        "Download the data and weights that the cells need.",
        ("fetch --suite quick --method pst",),
    )
    add_selection(fetch)
    add_folders(fetch)
    tune = add_command(
        commands,
        "tune",
        tune_cells,
        "Score parameters on the select slice of the training data; no record is written.",
        ("tune --method pst --set lr=3e-4",),
    )
    add_selection(tune)
    add_folders(tune)
    verify = add_command(
        commands,
        "verify",
        verify_record,
        "Run the cell of a submitted record and compare the two.",
        ("verify results/submissions/them/glue.rte/…/seed1.json",),
    )
    verify.add_argument("record", type=Path, metavar="RECORD", help="file of a record")
    verify.add_argument(
        "--rerun", action="store_true", help="run it even if it was run here before"
    )
    add_folders(verify)


def _add_plan(commands: Any) -> None:
    command = add_command(
        commands,
        "plan",
        plan_cells,
        "List each cell's state, its estimated time on this hardware, and its training MACs.",
        ("plan --method pst --seeds 1 2 3", "plan --suite paper-pst --tflops 300"),
    )
    add_selection(command)
    add_smoke(command)
    Device.add_flags(command)
    add_retry(command)
    add_folders(command)


def _add_run(commands: Any) -> None:
    command = add_command(
        commands,
        "run",
        run_cells,
        "Run the cells that are not done, then print the table and write the pages.",
        (
            "run --method pst",
            "run --method pst magnitude --sparsity 0.5 0.9 --seeds 1 2 3 --jobs 2",
            "run --suite glue --method pst --task glue/rte",
            "run --method pst --set lr=3e-4 budget.steps=100",
            "run --method wanda --pattern 2:4 --quantize int4",
            "run --suite paper-pst --smoke --jobs 2",
            "run --suite quick --engine dask --scheduler tcp://10.0.0.1:8786",
        ),
    )
    add_selection(command)
    command.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="cells that run at a time (default: 1)",
    )
    command.add_argument(
        "--engine", choices=("local", "dask"), default="local", help="where cells run"
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="with --engine dask: tcp://host:8786"
    )
    add_tls(command)
    add_smoke(command)
    command.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    command.add_argument("--rerun", action="store_true", help="run finished cells again")
    command.add_argument(
        "--timeout",
        type=positive,
        metavar="SECONDS",
        help="time limit of one cell in seconds (default: the budget's)",
    )
    command.add_argument(
        "--fail-fast", action="store_true", help="stop all cells at the first failure"
    )
    command.add_argument(
        "--keep-going",
        action="store_false",
        dest="fail_fast",
        help="run the other cells after a failure (default)",
    )
    command.add_argument(
        "--report-to",
        choices=("trackio", "wandb", "tensorboard"),
        help="tracker that watches training; scores and records stay the same (default: none)",
    )
    add_retry(command)
    add_folders(command)


def plan_cells(options: argparse.Namespace) -> int:
    """Prints the cells and their states."""
    _, store, jobs = resolve(options)
    show_plan(planned(options, store, jobs), store, Device.of(options))
    return 0


def fetch_sources(options: argparse.Namespace) -> int:
    """Downloads what the cells need."""
    from bench.engine.prepare import prepare

    _, _, jobs = resolve(options)
    missing = prepare(jobs)
    for line in sorted(set(missing.values())):
        warn(line)
    return 2 if missing else 0


def run_cells(options: argparse.Namespace) -> int:
    """Runs what is not done, prints the table and writes the pages."""
    from bench.reporting import leaderboard

    suite, store, jobs = resolve(options)
    settings = suite.settings.reporting_to(options.report_to)
    items = planned(options, store, jobs)
    if options.dry_run:
        show_plan(items, store)
        return 0
    if options.smoke:
        return run_smoke(jobs, options.jobs, options.timeout)
    engine = partial(_engine, options, settings)
    if _run(items, store, engine, options.fail_fast) == len(jobs):
        return 2  # nothing could be fetched: the lines above say it all
    states = {job.cell: store.state(job.cell, job.versions) for job in jobs}
    done = [store.get(cell) for cell, state in states.items() if state == "done"]
    if records := [record for record in done if record is not None]:
        say(leaderboard.table(records, average=suite.average))
    written = write_pages(store, options.reports)
    others = counted([state for state in states.values() if state != "done"])
    say(
        f"\n{len(done)} of {len(jobs)} cells done{others}; "
        f"records in {options.results}/, pages: {written[0]}"
    )
    return 0 if len(done) == len(jobs) else 1


def _run(
    items: Sequence[Planned],
    store: Store,
    engine: Callable[[OnProgress], Engine],
    fail_fast: bool = False,
) -> int:
    """Runs what is to be run and writes the records; with `fail_fast` up to the first failure.

    Returns:
        How many cells lack data or weights that cannot be reached.
    """
    todo = [item.job for item in items if item.todo]
    if not todo:
        return 0
    from bench.engine import messages, progress, scheduler
    from bench.engine.leases import Leases
    from bench.engine.prepare import prepare

    missing = prepare(todo)
    for line in sorted(set(missing.values())):
        warn(line)
    for job in todo:
        if job.cell in missing:
            store.put(messages.failed(job, "offline", missing[job.cell]))
    ready = [job for job in todo if job.cell not in missing]
    with Leases(store) as leases, progress.bars(len(ready)) as bars:
        records = scheduler.drive(ready, engine(bars.step), leases)
        with contextlib.closing(records):  # ends what still runs
            for record in records:
                store.put(record)
                bars.done(record)
                if fail_fast and record.status == "failed":
                    break
    return len(missing)


def _engine(options: argparse.Namespace, settings: RunSettings, on_progress: OnProgress) -> Engine:
    from bench.core.errors import BenchError

    if options.engine == "local":
        from bench.engine.local import Local

        return Local(options.jobs, on_progress, options.timeout, settings)
    if not options.scheduler:
        raise BenchError("--engine dask needs --scheduler ADDRESS, as tcp://host:8786")
    from bench.engine.dask_engine import Dask
    from bench.engine.dask_worker import security_of

    security = security_of(options.tls_ca_file, options.tls_cert, options.tls_key)
    return Dask(options.scheduler, security, options.timeout, settings)


def tune_cells(options: argparse.Namespace) -> int:
    """Prints scores on the select slice."""
    from bench.core.errors import BenchError

    if not options.method:
        raise BenchError("tune needs --method")
    _, _, jobs = resolve(options)
    from bench.costs.measure import reuse_freed_memory
    from bench.pipeline.cache import trained_dir
    from bench.pipeline.run import run_cell, tune_cell

    reuse_freed_memory()
    for job in (job for job in jobs if job.cell.method in options.method):
        if job.needs_dense and not trained_dir(job.dense).is_dir():
            run_cell(job.dense, lambda *_: None)
        scores = tune_cell(job, lambda *_: None)
        say(f"{job.cell}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    return 0


def verify_record(options: argparse.Namespace) -> int:
    """Runs the cell of a record from elsewhere, and compares the project's record with it."""
    from bench.core.errors import BenchError
    from bench.core.record import parse, verified
    from bench.core.store import Store
    from bench.planning.job import Job
    from bench.review import gate, submissions

    try:
        submitted = parse(options.record.read_bytes(), str(options.record))
    except OSError as error:
        raise BenchError(f"{options.record}: {error.strerror}") from None
    if submitted.status != "done" or verified(submitted):
        what = "the project's own record" if verified(submitted) else "the record of a failure"
        raise BenchError(f"{options.record} is {what}; verify takes a submission")
    job, store = Job.resolve(submitted.cell), Store(options.results)
    from bench.engine.local import Local

    _run(planned(options, store, [job]), store, partial(Local, 1))
    own = store.get(job.cell)
    if own is None or own.status == "failed":
        return 1
    moved = submissions.differences(submitted, own, store.records()[0])
    say(gate.verdict_text(moved, 1, str(options.record), "Verification"))
    write_pages(store, options.reports)
    return int(any(change.fails for change in moved))


def write_pages(store: Store, folder: Path) -> list[Path]:
    """Writes the pages of all records, submissions included, and returns their paths.

    Raises:
        BenchError: kind `disk`, naming the path.
    """
    from bench.core.files import disk_error
    from bench.reporting import pages
    from bench.review import submissions

    records, problems = submissions.with_own(store)
    try:
        return pages.write_pages(records, problems, folder, store.root)
    except OSError as error:
        raise disk_error(folder, error) from error
