"""The command that chooses settings: tune."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.cli.driving import engine_of, run_planned
from bench.cli.flags import add_command, add_results, positive
from bench.cli.output import say
from bench.cli.selection import add_selection, planned, resolve
from bench.cli.shelves import Shelves

if TYPE_CHECKING:
    from bench.core.cell import Cell
    from bench.core.record import Record
    from bench.core.tuning import Choice, Trial
    from bench.planning.trials import Search

TRIALS = "trials"
"""Folder of the trials' records, below those of this machine."""


def add_commands(commands: Any) -> None:
    """Adds the command."""
    tune = add_command(
        commands,
        "tune",
        tune_cells,
        "Try the settings of methods on the select slice and keep the best of each. With --set of "
        "a method's parameter: score that setting and keep nothing.",
        (
            "tune --suite quick",
            "tune --method pst --sparsity 0.5",
            "tune --method pst --set lr=3e-4",
        ),
    )
    add_selection(tune, seeds=False)
    tune.add_argument("--jobs", type=positive, metavar="N", help="trials that run at a time")
    tune.add_argument("--timeout", type=positive, metavar="SECONDS", help="limit of one trial")
    add_results(tune)


def tune_cells(options: argparse.Namespace) -> int:
    """Runs the trials that are missing and writes a choice for each search that is complete.

    With parameters of the method given, it scores those alone and chooses nothing.
    """
    from bench.core.errors import BenchError
    from bench.core.store import Store
    from bench.core.tuning import TUNING_SEED, write
    from bench.planning.trials import searches, trial_jobs
    from bench.review.choosing import choice_of

    options.seeds, options.engine = [TUNING_SEED], "local"
    suite, shelves, jobs = resolve(options, tuned=False)
    given = [job for job in jobs if job.cell.overrides.method]
    found = searches(jobs)
    if not (found or given):
        raise BenchError("there is nothing to choose: name methods that have settings to try")
    todo = trial_jobs(found) if not given else [job.on("select") for job in jobs]
    # The published records serve to estimate the time.
    place = Shelves(Store(shelves.own.root / TRIALS), shelves.published)
    engine = partial(engine_of, options, suite.settings, todo, place)
    if run_planned(planned(options, place.own, todo), place, engine).missing == len(todo):
        return 2  # nothing could be fetched: the lines above say it all
    records = {job.cell: place.own.get(job.cell) for job in todo}
    if given:
        for job in given:
            say(f"{job.cell}: {_scores(records[job.cell])}")
        return int(any(_failed(records[job.cell]) for job in given))
    choices = [choice_of(search, records) for search in found]
    for search, choice in zip(found, choices, strict=True):
        if choice is not None:
            write(shelves.own.root, choice)
        say(_line(search, choice, records))
    return int(None in choices)


def _failed(record: Record | None) -> bool:
    return record is None or record.status == "failed"


def _scores(record: Record | None) -> str:
    """Returns all scores of a trial, or why there are none."""
    if record is None or record.scores is None:
        return f"failed: {record.error.message}" if record and record.error else "was not run"
    return " ".join(f"{name} {value:.4f}" for name, value in record.scores.all.items())


def _line(search: Search, choice: Choice | None, records: Mapping[Cell, Record | None]) -> str:
    """Returns a line: the row, what was chosen, and the score of every setting."""
    cell = search.cell
    name = f"{cell.method} {cell.pattern.at(cell.sparsity)}"
    if choice is None:
        jobs = [job for tried in search.jobs for job in tried]
        first = next((job for job in jobs if _failed(records[job.cell])), jobs[0])
        return f"{name}: nothing is chosen; {_scores(records[first.cell])}"
    told = ", ".join(_told(trial) for trial in choice.trials)
    return f"{name}: {_named(choice.trials[choice.best])}, best of {len(choice.trials)} ({told})"


def _told(trial: Trial) -> str:
    mark = "failed" if trial.value is None else f"{trial.value:.4f}"
    return f"{_named(trial)} {mark}{' collapsed' if trial.collapsed else ''}"


def _named(trial: Trial) -> str:
    return (
        " ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.settings.items()
        )
        or "default"
    )
