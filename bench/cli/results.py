"""Commands that read records and run nothing: report, compare, claims, transfer, table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.flags import (
    MANY,
    REPORTS,
    RESULTS,
    add_command,
    add_out,
    add_published,
    add_reports,
    add_results,
)
from bench.cli.output import deliver, say, warn
from bench.cli.shelves import Shelves, store_of

if TYPE_CHECKING:
    from bench.core.record import Record
    from bench.core.store import Store
    from bench.core.tuning import Choices


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
    report = add_command(
        commands,
        "report",
        write_report,
        "Write the pages in reports/, and the table of README.md, from results/.",
        ("report",),
    )
    add_published(report)
    add_reports(report, REPORTS)
    compare = add_command(
        commands,
        "compare",
        compare_methods,
        "Compare two methods cell by cell, with paired tests.",
        ("compare pst gmp", "compare pst 'pst lr=0.001' --task reviews"),
    )
    compare.add_argument("a", metavar="A", help="a method as tables name it: pst, 'pst lr=0.001'")
    compare.add_argument("b", metavar="B", help="another method")
    compare.add_argument("--task", **MANY, help="tasks (default: all)")
    add_results(compare)
    add_out(compare)
    claims = add_command(
        commands,
        "claims",
        check_claims,
        "Show what papers claim beside what was found here.",
        ("claims --out reports/claims.md",),
    )
    add_published(claims)
    add_out(claims)
    transfer = add_command(
        commands,
        "transfer",
        check_transfer,
        "Show what the boards say of orders that large models have shown.",
        ("transfer --out reports/transfer.md",),
    )
    add_published(transfer)
    add_out(transfer)
    table = add_command(
        commands,
        "table",
        export_table,
        "Write all records as one table for other programs.",
        ("table --format csv", "table --format parquet --out all.parquet"),
    )
    table.add_argument(
        "--format", choices=("csv", "json", "latex", "parquet"), default="csv", help="default: csv"
    )
    add_results(table)
    add_out(table)


def write_report(options: argparse.Namespace) -> int:
    """Writes the pages and prints their paths."""
    from bench.core.files import disk_error
    from bench.core.store import Store
    from bench.core.tuning import Choices
    from bench.reporting import front, pages
    from bench.review import submissions

    records, problems = submissions.with_own(store_of(options.results))
    choices = Choices(options.results)
    try:
        written = pages.write_pages(
            records, problems, options.reports, options.results, choices=choices
        )
        if options.results == RESULTS:
            written += front.renewed(Path("README.md"), Store(RESULTS).records()[0], choices)
    except OSError as error:
        raise disk_error(options.reports, error) from error
    for path in written:
        say(str(path))
    return 0


def export_table(options: argparse.Namespace) -> int:
    """Writes all records as one table."""
    from bench.core.errors import BenchError
    from bench.reporting.export_table import FORMATS
    from bench.review import submissions

    shelves = Shelves.to_read(options)
    own, problems = submissions.with_own(shelves.own)
    _name_left_out(problems)
    records = [*own, *shelves.published_records()]
    table = FORMATS[options.format](records)
    if options.out is None and isinstance(table, bytes):
        raise BenchError(f"--format {options.format} is no text: name a file with --out")
    deliver(table.rstrip("\n") if isinstance(table, str) else table, options.out)
    return 0


def compare_methods(options: argparse.Namespace) -> int:
    """Compares two methods on all cells that both have."""
    from bench.core.errors import BenchError
    from bench.reporting import compare
    from bench.reporting.rows import own_first

    shelves = Shelves.to_read(options)
    records = own_first(_valid(shelves.own), shelves.published_records())
    if options.task:
        known = {record.cell.task for record in records}
        if unknown := [task for task in options.task if task not in known]:
            raise BenchError(f"no records of task {unknown[0]!r}: {', '.join(sorted(known))}")
        records = [record for record in records if record.cell.task in options.task]
    text = compare.report(records, options.a, options.b, shelves.choices())
    deliver(text, options.out)
    return 0


def check_claims(options: argparse.Namespace) -> int:
    """Sets the papers' claims beside what was found; counted ones need no record."""
    from bench.review import paper_claims

    return _deliver_page(options, paper_claims.claims_page)


def check_transfer(options: argparse.Namespace) -> int:
    """Sets orders of methods that papers printed beside those of the boards."""
    from bench.review import transfer

    return _deliver_page(options, transfer.transfer_page)


def _deliver_page(
    options: argparse.Namespace, page: Callable[[Sequence[Record], Choices], str]
) -> int:
    from bench.core import tuning
    from bench.core.store import Store

    records = _valid(Store(options.results)) if options.results.is_dir() else []
    deliver(page(records, tuning.Choices(options.results)), options.out)
    return 0


def _valid(store: Store) -> list[Record]:
    """The records of a tree; what is none is named on the error stream."""
    records, problems = store.records()
    _name_left_out(problems)
    return records


def _name_left_out(problems: Sequence[str]) -> None:
    for line in problems:
        warn(f"left out: {line}")
