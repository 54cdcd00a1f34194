"""`run --smoke`: tries the twins of a suite's cells; their records are thrown away."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.driving import engine_of, run_planned
from bench.cli.output import say
from bench.cli.shelves import Shelves

if TYPE_CHECKING:
    from bench.core.run_settings import RunSettings
    from bench.planning.job import Job


def run_smoke(options: argparse.Namespace, settings: RunSettings, jobs: Sequence[Job]) -> int:
    """Runs the twins and says of each whether it passed.

    Args:
        options: the flags of `run`.
        settings: settings of all runs.
        jobs: the twins.

    Returns:
        0 if all passed, else 1.
    """
    from bench.core.store import Store
    from bench.engine.local import LOGS
    from bench.planning.plan import plan

    with tempfile.TemporaryDirectory(prefix="sparsebench-") as folder:
        shelves = Shelves(Store(Path(folder)), None)
        engine = partial(engine_of, options, settings, jobs, shelves)
        run_planned(plan(jobs, shelves.own), shelves, engine)
        records = {job.cell: shelves.own.get(job.cell) for job in jobs}
    failed = 0
    for job in jobs:
        record = records[job.cell]
        reason = "was not run" if record is None else record.error and record.error.message
        failed += reason is not None
        say(f"failed  {job.cell}: {reason}" if reason else f"passed  {job.cell}")
    say(f"{len(jobs) - failed} of {len(jobs)} cells passed; no record is kept")
    if failed:
        say(f"logs: {LOGS}/")
    return int(failed > 0)
