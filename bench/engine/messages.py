"""Messages from a cell's process to its driver."""

from __future__ import annotations

import json
import sys

from bench.core import provenance
from bench.core.errors import Outcome
from bench.core.record import Record
from bench.core.record_parts import Failure
from bench.planning.job import Job

COMMAND = [sys.executable, "-m", "bench.engine.child"]


def parse_message(line: str) -> Record | tuple[str, int, int] | None:
    """Parses a message: a record, or (phase, done, all); None for a torn or foreign line."""
    try:
        event = json.loads(line)
        if "record" in event:
            return Record.model_validate_json(event["record"])
        return str(event["phase"]), int(event["done"]), int(event["all"])
    except (ValueError, TypeError, KeyError):
        return None


def failed(job: Job, kind: Outcome, message: str, tail: str = "") -> Record:
    """Makes the record of a failed cell; long messages and logs are cut."""
    return Record(
        cell=job.cell,
        key=job.cell.key,
        versions=job.versions,
        status="failed",
        code=provenance.code(job.method),
        error=Failure(kind=kind, message=message[:2000], log_tail=tail[-4000:]),
        time=provenance.now(),
    )
