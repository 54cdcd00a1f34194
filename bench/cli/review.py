"""Commands that judge records: check, submit, verify, publish."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.driving import run_planned
from bench.cli.flags import (
    MANY,
    RESULTS,
    add_command,
    add_folders,
    add_out,
    add_published,
    positive,
)
from bench.cli.output import deliver, say
from bench.cli.run import write_own_pages
from bench.cli.selection import planned
from bench.cli.shelves import Shelves, store_of

if TYPE_CHECKING:
    from bench.core.record import Record


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
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
    add_published(check)
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
    add_published(submit)
    verify = add_command(
        commands,
        "verify",
        verify_records,
        "Run the cells of records here and compare: of submissions, or of the project's own.",
        (
            "verify results/submissions/them/glue.rte/…/seed1.json",
            "verify results/reviews/minilm-l6/pst/*/seed1.json --jobs 2",
        ),
    )
    verify.add_argument("record", type=Path, nargs="+", metavar="RECORD", help="files of records")
    verify.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="cells that run at a time (1)"
    )
    verify.add_argument(
        "--rerun", action="store_true", help="run it even if it was run here before"
    )
    add_folders(verify)
    publish = add_command(
        commands,
        "publish",
        publish_records,
        "Move records of this machine to the published ones, for maintainers.",
        ("publish --dry-run", "publish --task reviews --method pst dense"),
    )
    publish.add_argument("--task", **MANY, help="tasks (default: all)")
    publish.add_argument("--method", **MANY, help="methods (default: all)")
    publish.add_argument(
        "--dry-run", action="store_true", help="say what would be moved or is refused"
    )
    publish.add_argument(
        "--results", type=Path, metavar="DIR", help="folder to move from (default: results/local)"
    )


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
    records, problems = store_of(options.results).records()
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
    from bench.review import submissions

    records = _checked(options.submission, out=None)
    if records is None:
        return 1
    for path in submissions.accept(records, options.results):
        say(str(path))
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


def verify_records(options: argparse.Namespace) -> int:
    """Runs the cells of records here, and compares each record with its rerun."""
    from bench.engine.local import Local
    from bench.planning.job import Job
    from bench.review import gate, submissions

    shelves = Shelves.of(options)
    stated = {path: _stated(path, shelves, options.rerun) for path in options.record}
    jobs = [Job.resolve(cell) for cell in dict.fromkeys(r.cell for r in stated.values())]
    items = planned(options, shelves.own, jobs)
    failed = run_planned(items, shelves, partial(Local, options.jobs)).failed
    known, wrong = shelves.records()[0], 0
    for path, record in stated.items():
        own = shelves.own.get(record.cell)
        if own is None or own.status == "failed" or record.cell in failed:
            wrong += 1
            continue
        moved = submissions.differences(record, own, known)
        say(gate.verdict_text(moved, 1, str(path), "Verification"))
        wrong += any(change.fails for change in moved)
    write_own_pages(shelves, options.reports)
    return int(wrong > 0)


def _stated(path: Path, shelves: Shelves, rerun: bool) -> Record:
    """Reads a record to verify.

    Raises:
        BenchError: there is no such record, or nothing to compare it with.
    """
    from bench.core.errors import BenchError
    from bench.core.record import parse

    try:
        record = parse(path.read_bytes(), str(path))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    if record.status != "done":
        raise BenchError(f"{path} is the record of a failure; verify takes finished ones")
    if not rerun and shelves.own.path(record.cell).resolve() == path.resolve():
        raise BenchError(f"{path} is what would be compared with it; --rerun runs its cell again")
    return record


def publish_records(options: argparse.Namespace) -> int:
    """Moves records to the published ones, all of them or, where one is refused, none."""
    from bench.core.errors import BenchError
    from bench.core.store import Store
    from bench.core.tuning import path_of_choice
    from bench.review import publishing

    own, published = store_of(Shelves.of(options).own.root), Store(RESULTS)
    found, problems = own.records()
    records = [
        record
        for record in found
        if record.cell.task in (options.task or [record.cell.task])
        and record.cell.method in (options.method or [record.cell.method])
    ]
    if not records:
        raise BenchError(f"{own.root}: no such records; `sparsebench run` makes them")
    choices = publishing.choices_of(records, own)
    lines = publishing.refusals(records, problems, published, Path())
    lines += publishing.choice_refusals(choices)
    for line in lines:
        say(f"refused: {line}")
    if lines:
        return 1
    if options.dry_run:
        paths = [published.path(record.cell) for record in records]
        for path in [*paths, *(path_of_choice(published.root, choice) for choice in choices)]:
            say(f"would publish {path}")
        return 0
    for path in publishing.publish(records, own, published):
        say(f"published {path}")
    for path in publishing.publish_choices(choices, own, published):
        say(f"published {path}")
    say("now run `make report claims transfer`, read the difference, and commit")
    return 0
