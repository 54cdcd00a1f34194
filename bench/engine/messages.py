"""What a cell's process tells its driver."""

from __future__ import annotations

import json
import sys

from bench.core import provenance
from bench.core.cell import Cell
from bench.core.errors import Outcome
from bench.core.record import Failure, Record
from bench.planning import registry
from bench.planning.job import versions_of

COMMAND = [sys.executable, "-m", "bench.engine.child"]


def parse_message(line: str) -> Record | tuple[str, int, int] | None:
    """A record, or (phase, done, all); None for what a process that was killed has left unsaid."""
    try:
        event = json.loads(line)
        if "record" in event:
            return Record.model_validate_json(event["record"])
        return str(event["phase"]), int(event["done"]), int(event["all"])
    except (ValueError, TypeError, KeyError):
        return None


def failed(cell: Cell, kind: Outcome, message: str, tail: str = "") -> Record:
    """The record of a failure."""
    return Record(
        cell=cell,
        key=cell.key,
        versions=versions_of(cell),
        status="failed",
        code=provenance.code(registry.method(cell.method)),
        error=Failure(kind=kind, message=message[:2000], log_tail=tail[-4000:]),
        time=provenance.now(),
    )
