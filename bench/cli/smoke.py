"""`run --smoke`: tries the twins of a suite's cells; their records are thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.output import say

if TYPE_CHECKING:
    from bench.planning.job import Job


def run_smoke(jobs: Sequence[Job], slots: int, timeout_s: float | None = None) -> int:
    """Runs twins on this machine and says of each whether it passed.

    Args:
        jobs: the twins.
        slots: cells that run at a time.
        timeout_s: time limit of a cell in seconds; by default that of its budget.

    Returns:
        0 if all passed, else 1.
    """
    from bench.core.store import Store
    from bench.engine import progress, scheduler
    from bench.engine.leases import Leases
    from bench.engine.local import LOGS, Local
    from bench.engine.prepare import prepare

    prepare(jobs)
    with (
        tempfile.TemporaryDirectory(prefix="sparsebench-") as folder,
        Leases(Store(Path(folder))) as leases,
        progress.bars(len(jobs)) as bars,
    ):
        records = []
        for record in scheduler.drive(jobs, Local(slots, bars.step, timeout_s), leases):
            records.append(record)
            bars.done(record)
    by_cell = {record.cell: record for record in records}
    failed = 0
    for job in jobs:
        error = by_cell[job.cell].error
        failed += error is not None
        say(f"failed  {job.cell}: {error.message}" if error else f"passed  {job.cell}")
    say(f"{len(jobs) - failed} of {len(jobs)} cells passed; no record is kept")
    if failed:
        say(f"logs: {LOGS}/")
    return int(failed > 0)
