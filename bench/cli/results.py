"""What the commands do that read records and run nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cli.output import say
from bench.core.errors import BenchError
from bench.core.files import disk_error, write_atomic
from bench.core.record import Record
from bench.core.store import Store
from bench.core.tables import escape
from bench.reporting import compare
from bench.reporting.export_table import FORMATS
from bench.review import gate, paper_claims, submissions


def check(options: argparse.Namespace) -> int:
    """Validates a tree of records and holds it against a baseline; 1 where something fails.

    With a submission, that is checked instead.
    """
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
        baseline = gate.read(options.baseline)
        moved = gate.changes(baseline, gate.rows_of(records))
        failed = failed or any(change.fails for change in moved)
        parts.insert(0, gate.report(moved, len(baseline), str(options.baseline)))
    else:
        parts.insert(0, f"{len(records)} records are valid.")
    _deliver("\n\n".join(parts), options.out)
    return int(failed)


def submit(options: argparse.Namespace) -> int:
    """Files records from elsewhere as unverified, all of them or, where one is refused, none."""
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
    records, lines = submissions.validate(folder)
    if not records and not lines:
        raise BenchError(f"{folder}: no records")
    verdict = "refused" if lines else "accepted, unverified"
    listed = "".join(f"\n* {escape(line)}" for line in lines)
    text = f"# Submission {verdict}\n\n{len(records)} records, {len(lines)} problems.\n{listed}"
    _deliver(text.rstrip(), out)
    return None if lines else records


def export_table(options: argparse.Namespace) -> int:
    """Writes all records as one table."""
    records, problems = submissions.with_own(_store(options.results))
    _name_left_out(problems)
    table = FORMATS[options.format](records)
    if options.out is None and isinstance(table, bytes):
        raise BenchError(f"--format {options.format} is no text: name a file with --out")
    _deliver(table.rstrip("\n") if isinstance(table, str) else table, options.out)
    return 0


def compare_methods(options: argparse.Namespace) -> int:
    """Compares two methods on all cells that both have."""
    records = _valid(options.results)
    if options.task:
        known = {record.cell.task for record in records}
        if unknown := [task for task in options.task if task not in known]:
            raise BenchError(f"no records of task {unknown[0]!r}: {', '.join(sorted(known))}")
        records = [record for record in records if record.cell.task in options.task]
    _deliver(compare.report(records, options.a, options.b), options.out)
    return 0


def check_claims(options: argparse.Namespace) -> int:
    """Sets the papers' claims beside what was found; counted ones need no record."""
    records = _valid(options.results) if options.results.is_dir() else []
    _deliver(paper_claims.report(records), options.out)
    return 0


def _valid(folder: Path) -> list[Record]:
    """The project's records of a tree; what is none is named on the error stream."""
    records, problems = _store(folder).records()
    _name_left_out(problems)
    return records


def _name_left_out(problems: Sequence[str]) -> None:
    for line in problems:
        say(f"sparsebench: left out: {line}", sys.stderr)


def _store(folder: Path) -> Store:
    if not folder.is_dir():
        raise BenchError(f"{folder}: no such folder; --results DIR is where the records are")
    return Store(folder)


def _deliver(content: str | bytes, out: Path | None) -> None:
    """Prints a report, or writes it and says where."""
    if out is None:
        say(str(content))
        return
    try:
        write_atomic(out, content + "\n" if isinstance(content, str) else content)
    except OSError as error:
        raise disk_error(out, error) from error
    say(str(out))
