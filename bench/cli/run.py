"""Commands that run cells: plan, run, fetch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.driving import engine_of, run_planned
from bench.cli.flags import add_command, add_folders, add_results, add_tls, positive
from bench.cli.output import say, warn
from bench.cli.plan_text import Device, counted, show_plan
from bench.cli.selection import add_selection, add_smoke, planned, resolve
from bench.cli.smoke import run_smoke

if TYPE_CHECKING:
    from bench.cli.shelves import Shelves
    from bench.core.record import Record


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
    add_results(fetch)


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
    _add_retry(command)
    add_results(command)


def _add_run(commands: Any) -> None:
    command = add_command(
        commands,
        "run",
        run_cells,
        "Run the cells that are not done here, then print the table and write the pages.",
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
        metavar="N",
        help="cells that run at a time (default: one a GPU, or one a core if memory suffices)",
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
    _add_retry(command)
    add_folders(command)


def _add_retry(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run failed cells again (default: yes)",
    )


def plan_cells(options: argparse.Namespace) -> int:
    """Prints the cells and their states."""
    _, shelves, jobs = resolve(options)
    show_plan(planned(options, shelves.own, jobs), shelves, Device.of(options))
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
    """Runs what is not done, prints the tables and writes the pages."""
    suite, shelves, jobs = resolve(options)
    settings = suite.settings.reporting_to(options.report_to)
    items = planned(options, shelves.own, jobs)
    if options.dry_run:
        show_plan(items, shelves)
        return 0
    if options.smoke:
        return run_smoke(options, settings, jobs)
    engine = partial(engine_of, options, settings, jobs, shelves)
    missing, failed = run_planned(items, shelves, engine, options.fail_fast)
    if missing == len(jobs):
        return 2  # nothing could be fetched: the lines above say it all
    # A failed rerun leaves the record of an earlier run in place.
    states = {
        job.cell: "failed" if job.cell in failed else shelves.own.state(job.cell, job.versions)
        for job in jobs
    }
    done = [shelves.own.get(cell) for cell, state in states.items() if state == "done"]
    if records := [record for record in done if record is not None]:
        _show(records, shelves, suite.average)
    written = write_own_pages(shelves, options.reports)
    others = counted([state for state in states.values() if state != "done"])
    say(
        f"\n{len(done)} of {len(jobs)} cells done{others}; "
        f"records in {shelves.own.root}/, pages: {written[0]}"
    )
    return 0 if len(done) == len(jobs) else 1


def _show(records: Sequence[Record], shelves: Shelves, average: Sequence[str]) -> None:
    """Prints a run's tables, and a line for each row that is also published.

    Beside its rows stand the published ones of the same methods; the pages have all of them.
    """
    from bench.reporting import leaderboard
    from bench.reporting.rows import with_published
    from bench.review import reproduction

    published = shelves.published_records()
    methods = {record.cell.method for record in records}
    same = [record for record in published if record.cell.method in methods]
    shown = with_published(records, same)
    say(leaderboard.table(shown, average=average, choices=shelves.choices()))
    if lines := reproduction.comparisons(records, published):
        say("\n" + "\n".join(lines))


def write_own_pages(shelves: Shelves, folder: Path) -> list[Path]:
    """Writes the pages of own records, the published ones beside them, and returns their paths.

    Raises:
        BenchError: kind `disk`, naming the path.
    """
    from bench.core.files import disk_error
    from bench.reporting import pages
    from bench.reporting.rows import with_published
    from bench.review import submissions

    records, problems = submissions.with_own(shelves.own)
    published = shelves.published.root if shelves.published else None
    shown = with_published(records, shelves.published_records())
    source = f"Generated by `sparsebench run` from `{shelves.own.root.name}/`; do not edit."
    try:
        return pages.write_pages(
            shown, problems, folder, shelves.own.root, published, source, shelves.choices()
        )
    except OSError as error:
        raise disk_error(folder, error) from error
