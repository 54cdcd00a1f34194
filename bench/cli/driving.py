"""Drives planned cells: their data, the engine, the progress, the records."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.cli.output import warn

if TYPE_CHECKING:
    from bench.cli.shelves import Shelves
    from bench.core.cell import Cell
    from bench.core.run_settings import RunSettings
    from bench.engine.scheduler import Engine, OnProgress
    from bench.planning.job import Job
    from bench.planning.plan import Planned


class Outcome(NamedTuple):
    """What became of the cells that were to run.

    Attributes:
        missing: how many lack data or weights that cannot be reached.
        failed: those and the ones that failed, whatever older records say.
    """

    missing: int = 0
    failed: Collection[Cell] = ()


def run_planned(
    items: Sequence[Planned],
    shelves: Shelves,
    engine: Callable[[OnProgress], Engine],
    fail_fast: bool = False,
) -> Outcome:
    """Runs what is to be run and writes the records; with `fail_fast` up to the first failure."""
    todo = [item.job for item in items if item.todo]
    if not todo:
        return Outcome()
    warn(f"{len(todo)} of {len(items)} cells to run; looking for their data and weights")
    from bench.engine import messages, scheduler
    from bench.engine.estimate import Estimator
    from bench.engine.leases import Leases
    from bench.engine.prepare import prepare
    from bench.engine.progress import progress

    missing = prepare(todo)
    for line in sorted(set(missing.values())):
        warn(line)
    for job in todo:
        if job.cell in missing:
            shelves.own.put(messages.failed(job, "offline", missing[job.cell]))
    ready = [job for job in todo if job.cell not in missing]
    failed = set(missing)
    if not ready:
        return Outcome(len(missing), failed)
    estimator = Estimator(shelves.records()[0])
    expected = {job.cell: estimator.seconds(job) for job in ready}
    with Leases(shelves.own) as leases, progress(expected) as shown:
        place = engine(shown.step)
        shown.slots = place.slots
        warn(_announced(shown.left(), place.slots, estimator.elsewhere))
        records = scheduler.drive(ready, place, leases, shown.start)
        with contextlib.closing(records):  # ends what still runs
            for record in records:
                shelves.own.put(record)
                shown.done(record)
                if record.status == "failed":
                    failed.add(record.cell)
                    if fail_fast:
                        break
    return Outcome(len(missing), failed)


def _announced(seconds: float | None, slots: int, elsewhere: bool) -> str:
    """Says how many cells run at a time, and for how long."""
    from bench.core.tables import duration

    about = "no record tells how long it takes"
    if seconds is not None:
        about = f"about {duration(seconds)}"
        about += " by records of another kind of machine" if elsewhere else ""
    return f"{slots} at a time, {about}; stop at any time, the same command continues"


def engine_of(
    options: argparse.Namespace,
    settings: RunSettings,
    jobs: Sequence[Job],
    shelves: Shelves,
    on_progress: OnProgress,
) -> Engine:
    """Makes the engine that a user's flags name.

    Raises:
        BenchError: dask without the address of its scheduler.
    """
    from bench.core.errors import BenchError

    if options.engine == "local":
        from bench.engine.estimate import Estimator
        from bench.engine.local import Local, default_slots

        known = Estimator(shelves.records()[0])
        slots = options.jobs or default_slots(jobs, known, settings.processes)
        return Local(slots, on_progress, options.timeout, settings)
    if not options.scheduler:
        raise BenchError("--engine dask needs --scheduler ADDRESS, as tcp://host:8786")
    from bench.engine.dask_engine import Dask
    from bench.engine.dask_worker import security_of

    security = security_of(options.tls_ca_file, options.tls_cert, options.tls_key)
    return Dask(options.scheduler, security, options.timeout, settings)
