"""Commands that read records and run nothing: report, check, submit, compare, claims, table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.flags import MANY, add_command, add_folders, add_out, add_results
from bench.cli.output import deliver, say, warn

if TYPE_CHECKING:
    from bench.core.record import Record
    from bench.core.store import Store


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
    report = add_command(
        commands, "report", write_report, "Write the pages in reports/ from results/.", ("report",)
    )
    add_folders(report)
    check = add_command(
        commands,
        "check",
        check_records,
        "Validate records and compare them with a baseline, or validate a submission.",
        (
            "check",
            "check --results results --baseline mine.json --update",
            "check --results results --baseline mine.json",
            "check theirs/",
        ),
    )
    check.add_argument(
        "submission", type=Path, nargs="?", metavar="DIR", help="records from elsewhere"
    )
    add_results(check)
    check.add_argument("--baseline", type=Path, metavar="FILE", help="numbers that must not change")
    check.add_argument(
        "--update", action="store_true", help="write the baseline and show what changes in it"
    )
    add_out(check)
    submit = add_command(
        commands,
        "submit",
        submit_records,
        "File records from elsewhere as unverified.",
        ("submit theirs/",),
    )
    submit.add_argument(
        "submission", type=Path, metavar="DIR", help="records, in folders as in results/"
    )
    add_results(submit)
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
    add_results(claims)
    add_out(claims)
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
    from bench.cli.run import write_pages
    from bench.core.store import Store

    for path in write_pages(Store(options.results), options.reports):
        say(str(path))
    return 0


def check_records(options: argparse.Namespace) -> int:
    """Validates a tree of records and holds it against a baseline; 1 where something fails.

    With a submission, that is checked instead.
    """
    from bench.core.errors import BenchError
    from bench.core.tables import escape
    from bench.review import gate

    if options.submission:
        if options.baseline or options.update:
            raise BenchError("a submission has no baseline: check DIR, or --baseline FILE")
        return int(_checked(options.submission, options.out) is None)
    if options.update and not options.baseline:
        raise BenchError("--update needs --baseline FILE, the file to write")
    records, problems = _store(options.results).records()
    listed = [f"* {escape(line)}" for line in problems]
    parts = []
    if problems:
        parts.append("\n".join([f"{len(problems)} files are no records:", "", *listed]))
    failed = bool(problems)
    if options.update:
        if problems or not records:
            raise BenchError(f"{options.results}: {(*problems, 'no records')[0]}; baseline kept")
        diff = gate.update(options.baseline, gate.rows_of(records))
        parts.append(f"```diff\n{diff}\n```" if diff else f"{options.baseline}: as it was.")
    elif options.baseline:
        baseline = gate.read_baseline(options.baseline)
        moved = gate.changes(baseline, gate.rows_of(records))
        failed = failed or any(change.fails for change in moved)
        parts.insert(0, gate.verdict_text(moved, len(baseline), str(options.baseline)))
    else:
        parts.insert(0, f"{len(records)} records are valid.")
    deliver("\n\n".join(parts), options.out)
    return int(failed)


def submit_records(options: argparse.Namespace) -> int:
    """Files records from elsewhere as unverified, all of them or, where one is refused, none."""
    from bench.core.files import disk_error
    from bench.review import submissions

    records = _checked(options.submission, out=None)
    if records is None:
        return 1
    try:
        for path in submissions.accept(records, options.results):
            say(str(path))
    except OSError as error:
        raise disk_error(options.results, error) from error
    say("unverified until `sparsebench verify FILE` has run the cell; see `sparsebench report`")
    return 0


def _checked(folder: Path, out: Path | None) -> list[Record] | None:
    """The records of a submission, after a report on them; None where one is refused."""
    from bench.core.errors import BenchError
    from bench.core.tables import escape
    from bench.review import submissions

    records, lines = submissions.validate(folder)
    if not records and not lines:
        raise BenchError(f"{folder}: no records")
    verdict = "refused" if lines else "accepted, unverified"
    listed = "".join(f"\n* {escape(line)}" for line in lines)
    text = f"# Submission {verdict}\n\n{len(records)} records, {len(lines)} problems.\n{listed}"
    deliver(text.rstrip(), out)
    return None if lines else records


def export_table(options: argparse.Namespace) -> int:
    """Writes all records as one table."""
    from bench.core.errors import BenchError
    from bench.reporting.export_table import FORMATS
    from bench.review import submissions

    records, problems = submissions.with_own(_store(options.results))
    _name_left_out(problems)
    table = FORMATS[options.format](records)
    if options.out is None and isinstance(table, bytes):
        raise BenchError(f"--format {options.format} is no text: name a file with --out")
    deliver(table.rstrip("\n") if isinstance(table, str) else table, options.out)
    return 0


def compare_methods(options: argparse.Namespace) -> int:
    """Compares two methods on all cells that both have."""
    from bench.core.errors import BenchError
    from bench.reporting import compare

    records = _valid(options.results)
    if options.task:
        known = {record.cell.task for record in records}
        if unknown := [task for task in options.task if task not in known]:
            raise BenchError(f"no records of task {unknown[0]!r}: {', '.join(sorted(known))}")
        records = [record for record in records if record.cell.task in options.task]
    deliver(compare.report(records, options.a, options.b), options.out)
    return 0


def check_claims(options: argparse.Namespace) -> int:
    """Sets the papers' claims beside what was found; counted ones need no record."""
    from bench.review import paper_claims

    records = _valid(options.results) if options.results.is_dir() else []
    deliver(paper_claims.claims_page(records), options.out)
    return 0


def _valid(folder: Path) -> list[Record]:
    """The project's records of a tree; what is none is named on the error stream."""
    records, problems = _store(folder).records()
    _name_left_out(problems)
    return records


def _name_left_out(problems: Sequence[str]) -> None:
    for line in problems:
        warn(f"left out: {line}")


def _store(folder: Path) -> Store:
    from bench.core.errors import BenchError
    from bench.core.store import Store

    if not folder.is_dir():
        raise BenchError(f"{folder}: no such folder; --results DIR is where the records are")
    return Store(folder)
