"""What the commands of `bench.cli` do; every one takes the parsed options, returns the exit code.

Imports that load torch stand in the functions that need them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import plan, registry
from bench.api import QUANTIZE, BenchError, Cell
from bench.cli import say
from bench.plan import Planned
from bench.registry import Suite
from bench.reporting import leaderboard
from bench.reporting.commands import (  # noqa: F401  # looked up by `bench.cli`
    check,
    check_claims,
    compare_methods,
    export_table,
)
from bench.store import Store, disk_error


def what_there_is(options: argparse.Namespace) -> int:
    """What there is of one kind."""
    rows: list[tuple[str, str]]
    if options.what == "suites":
        rows = [(name, registry.suite(name).description) for name in registry.suite_names()]
    elif options.what == "models":
        from bench.models import PLACES

        rows = [
            (n, p.repo + (f" @ {p.revision[:8]}" if p.revision else "")) for n, p in PLACES.items()
        ]
    elif options.what == "methods":
        found = [registry.method(name) for name in registry.names("method")]
        rows = [(m.name, f"{_first_line(m)} [{', '.join(m.patterns)}]") for m in found]
    else:
        tasks = [registry.task(name) for name in registry.names("task")]
        rows = [(t.name, f"{_first_line(t)} [{t.metric}]") for t in tasks]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:{width}}  {text}")
    return 0


def plan_cells(options: argparse.Namespace) -> int:
    """The cells and their states."""
    _, store, cells = _resolve(options)
    _show_plan(_planned(options, store, cells))
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Downloads what the cells need."""
    _, _, cells = _resolve(options)
    missing = _prepare(cells)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    return 2 if missing else 0


def run_cells(options: argparse.Namespace) -> int:
    """Runs what is not done, prints the table and writes the pages."""
    suite, store, cells = _resolve(options)
    planned = _planned(options, store, cells)
    if options.dry_run:
        _show_plan(planned)
        return 0
    todo = [p.cell for p in planned if p.todo]
    failures = 0
    if todo:
        from bench import engines, isolate, progress

        missing = _prepare(todo)
        for line in sorted(set(missing.values())):
            say(f"sparsebench: {line}", sys.stderr)
        for cell, line in missing.items():
            store.put(isolate.failed(cell, "offline", line))
        failures = len(missing)
        ready = [cell for cell in todo if cell not in missing]
        with progress.bars(len(ready)) as bars:
            for record in engines.local(ready, options.jobs, Path(".sparsebench/logs"), bars.step):
                store.put(record)
                bars.done(record)
                failures += record.status == "failed"
        if len(missing) == len(cells):  # nothing could be had: the line above says it all
            return 2
    versions = plan.versions_of
    done = [store.get(c) for c in cells if store.state(c, versions(c)) == "done"]
    if found := [record for record in done if record is not None]:
        say(leaderboard.table(found, average=suite.average))
    pages = _write_pages(store, options.reports)
    say(
        f"\n{len(done)} of {len(cells)} cells done; "
        f"records in {options.results}/, pages: {pages[0]}"
    )
    return 1 if failures else 0


def report(options: argparse.Namespace) -> int:
    """Writes the pages."""
    for path in _write_pages(Store(options.results), options.reports):
        say(str(path))
    return 0


def tune(options: argparse.Namespace) -> int:
    """Scores on the select slice."""
    from bench import measure, run

    if not options.method:
        raise BenchError("tune needs --method")
    measure.reuse_freed_memory()
    _, _, cells = _resolve(options)
    cells = [cell for cell in cells if cell.method in options.method]
    for cell in cells:
        if plan.needs_reference(cell) and not plan.trained_dir(plan.reference_of(cell)).is_dir():
            run.run_cell(plan.reference_of(cell), lambda *_: None)
        scores = run.tune_cell(cell, lambda *_: None)
        say(f"{cell}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    return 0


def prune_model(options: argparse.Namespace) -> int:
    """Prunes one model into a folder."""
    from bench.prune import prune

    found = prune(
        options.model,
        options.method,
        options.out.expanduser(),
        pattern=options.pattern,
        sparsity=options.sparsity,
        overrides=plan.settings(options.set),
        calibration=options.calibration,
        calib=options.calib,
        length=options.length,
        seed=options.seed,
    )
    say(
        f"{options.out}: sparsity {found.overall:.4f} overall, "
        f"{found.min_layer:.4f} to {found.max_layer:.4f} a matrix"
    )
    return 0


def export_model(options: argparse.Namespace) -> int:
    """Packs one model into a folder."""
    from bench.export import export

    done = export(
        options.source,
        options.format,
        options.out.expanduser(),
        dtype=options.dtype,
        group=options.group,
        asymmetric=options.asymmetric,
        sliced=options.slice,
    )
    for note in done.notes:
        say(f"sparsebench: {note}", sys.stderr)
    layouts = ", ".join(f"{n} {layout}" for layout, n in sorted(done.layouts.items()))
    say(
        f"{options.out}: {options.format} ({layouts}), {done.size / 1e6:.3f} MB, "
        f"computed {done.computed / 1e6:.3f} MB\n"
        f"{done.dense / done.size:.2f}x smaller than dense FP32 ({done.dense / 1e6:.3f} MB); "
        f"the packed matrices alone {done.linear / done.packed:.2f}x"
    )
    return 0


def load_model(options: argparse.Namespace) -> int:
    """Checks an exported folder, and writes it as transformers has it."""
    from bench import count
    from bench.export import load, unpack_folder

    folder = options.folder.expanduser()
    if options.out:
        unpack_folder(folder, options.out.expanduser())
        say(f"{options.out}: an ordinary transformers folder")
        return 0
    model = load(folder)
    found = count.sparsity(model, "dense")
    say(
        f"{folder}: {type(model).__name__}, {str(model.dtype).removeprefix('torch.')}, "
        f"sparsity {found.overall:.4f}"
    )
    return 0


def pretrain_model(options: argparse.Namespace) -> int:
    """Trains gpt2-mini from scratch."""
    from tqdm import tqdm

    from bench import measure, pretrain

    measure.reuse_freed_memory()
    try:
        recipe = pretrain.Recipe(**plan.settings(options.set))
    except TypeError:
        known = ", ".join(f.name for f in dataclasses.fields(pretrain.Recipe))
        raise BenchError(f"--set: the recipe has {known}") from None
    with tqdm(total=recipe.steps, unit="step", disable=not sys.stderr.isatty()) as bar:

        def progress(step: int, _: int) -> None:
            bar.update(step - bar.n)

        place = pretrain.pretrain(options.text, recipe, progress)
    say(f"{pretrain.SLUG} is in {place}; use it as --model {pretrain.SLUG}")
    return 0


def speed_table(options: argparse.Namespace) -> int:
    """Prints step times relative to dense."""
    from bench import speed

    methods = options.method or speed.default_methods()
    say(
        speed.table(
            methods, options.model, options.batch, options.length, options.steps, options.dtype
        )
    )
    return 0


def latency_table(options: argparse.Namespace) -> int:
    """Prints latencies relative to the first model's."""
    from bench import latency

    say(
        latency.table(
            options.models,
            options.batch,
            options.length,
            options.turns,
            options.seconds,
            options.dtype,
        )
    )
    return 0


def count_model(options: argparse.Namespace) -> int:
    """Prints what methods train, store and multiply."""
    from bench import accounting, count, run

    # A GPU that is not here is taken for one of compute capability 8.0.
    kernel = count.has_kernel(run.device_of()) if options.device is None else False
    say(
        accounting.report(
            options.model,
            options.method or (),
            pattern=options.pattern,
            sparsity=options.sparsity,
            overrides=plan.settings(options.set),
            length=options.length,
            batch=options.batch,
            kernel=kernel or options.device == "cuda",
        )
    )
    return 0


def _resolve(options: argparse.Namespace) -> tuple[Suite, Store, list[Cell]]:
    from bench import plan, registry

    suite = registry.suite(options.suite)
    changes: dict[str, Any] = {}
    for field, values in (
        ("tasks", options.task),
        ("patterns", options.pattern),
        ("sparsities", options.sparsity),
        ("seeds", options.seeds),
    ):
        if values:
            changes[field] = tuple(values)
    if options.model:
        from bench.models import adopt

        changes["models"] = tuple(adopt(name) for name in options.model)
    if options.budget:
        changes["budget"] = options.budget
    overrides = dict(suite.overrides) | plan.settings(options.set or ())
    if options.limit:
        overrides["budget.items"] = options.limit
    if options.quantize:
        overrides[f"{QUANTIZE}quantize"] = options.quantize
    changes["overrides"] = tuple(sorted(overrides.items()))
    suite = dataclasses.replace(suite, **changes)
    cells = plan.expand(suite, options.method or (), explicit=bool(options.pattern))
    return suite, Store(options.results), cells


def _planned(options: argparse.Namespace, store: Store, cells: Sequence[Cell]) -> list[Planned]:
    return plan.plan(cells, store, rerun=getattr(options, "rerun", False))


def _show_plan(planned: Sequence[Planned]) -> None:
    for item in planned:
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {item.cell}")
    say(f"{sum(item.todo for item in planned)} of {len(planned)} cells to run")


def _prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Fetches data and weights once, before any cell starts; cells that lack something → why."""
    from bench import models

    broken: dict[tuple[str, str], str] = {}
    for kind, name in sorted({(k, getattr(c, k)) for c in cells for k in ("task", "model")}):
        try:
            if kind == "task":
                registry.task(name).prepare()
            else:
                models.prepare(name)
        except BenchError as error:
            if error.kind != "offline":
                raise
            broken[kind, name] = str(error)
    for task, model, length in sorted(
        {
            (cell.task, cell.model, plan.budget_of(cell).length)
            for cell in cells
            if ("task", cell.task) not in broken and ("model", cell.model) not in broken
        }
    ):
        models.check(model, registry.task(task), length)
    return {
        cell: broken[kind, getattr(cell, kind)]
        for cell in cells
        for kind in ("task", "model")
        if (kind, getattr(cell, kind)) in broken
    }


def _write_pages(store: Store, folder: Path) -> list[Path]:
    records, problems = store.records()
    try:
        return leaderboard.write_pages(records, problems, folder, store.root)
    except OSError as error:
        raise disk_error(folder, error) from error


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]
