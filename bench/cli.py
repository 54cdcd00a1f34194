"""The command line: `sparsebench` or `python -m bench`.

Exit codes: 0 all is done; 1 a cell failed; 2 bad input, or what is needed cannot be had;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Cell
    from bench.plan import Planned
    from bench.registry import Suite
    from bench.store import Store


def parser() -> argparse.ArgumentParser:
    """All commands and flags; imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="sparsebench", description="A fair benchmark of sparsity methods for language models."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser("list", help="what there is")
    show.add_argument("what", choices=("methods", "tasks", "models", "suites"))

    for name, text in (
        ("plan", "the suite's cells and their states"),
        ("run", "run the cells that are not done, then print the table"),
        ("fetch", "download what the cells need"),
        ("tune", "score hyper-parameters on the select slice; leaves no record"),
    ):
        command = commands.add_parser(name, help=text)
        _selection(command)
        if name == "run":
            command.add_argument("--jobs", type=_positive, default=1, help="cells at a time")
            command.add_argument(
                "--dry-run", action="store_true", help="show the plan, run nothing"
            )
            command.add_argument("--rerun", action="store_true", help="run finished cells again")
        _folders(command)

    report = commands.add_parser("report", help="write the pages in reports/ from results/")
    _folders(report)

    prune = commands.add_parser("prune", help="prune one model into a transformers folder")
    prune.add_argument("model", metavar="MODEL", help="a slug, a hub id or a folder")
    prune.add_argument("--method", required=True, metavar="NAME", help="a one-shot method")
    prune.add_argument("--pattern", metavar="P", help="by default the method's first")
    prune.add_argument("--sparsity", metavar="S", type=float, help="needed unless N:M")
    prune.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty")
    prune.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="a task, a text file, or token ids (.json, .npy); needed by data-driven methods",
    )
    prune.add_argument("--calib", type=_positive, default=128, metavar="N", help="sequences")
    prune.add_argument("--length", type=_positive, metavar="L", help="tokens a sequence (512)")
    prune.add_argument("--seed", type=int, default=1, metavar="K")
    prune.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")

    speed = commands.add_parser("speed", help="training-step time relative to dense fine-tuning")
    speed.add_argument(
        "--method", action="extend", nargs="+", metavar="NAME[:SPARSITY[:KEY=VALUE]]"
    )
    speed.add_argument("--model", default="minilm-l6")
    speed.add_argument("--batch", type=_positive, default=32)
    speed.add_argument("--length", type=_positive, default=64)
    speed.add_argument("--steps", type=_positive, default=15, help="timed steps of each method")
    speed.add_argument("--dtype", choices=("auto", "float32", "bf16"), default="auto")
    return top


def _selection(command: argparse.ArgumentParser) -> None:
    many: dict[str, Any] = {"action": "extend", "nargs": "+", "metavar": "NAME"}
    command.add_argument("--suite", default="quick", help="a suite's name or a TOML file")
    command.add_argument("--method", **many, help="methods, beside the suite's baselines")
    command.add_argument("--task", **many)
    command.add_argument("--model", **many, help="slugs, hub ids or folders")
    command.add_argument("--pattern", **many, help="unstructured, 2:4, block:16x16, heads, …")
    command.add_argument("--sparsity", **{**many, "metavar": "S"}, type=float)
    command.add_argument("--seeds", **{**many, "metavar": "K"}, type=int)
    command.add_argument("--budget", metavar="NAME", help="one of the task's budgets")
    command.add_argument(
        "--set",
        **{**many, "metavar": "KEY=VALUE"},
        help="a parameter of the method (lr=1e-4) or of the budget (budget.steps=200)",
    )


def _folders(command: argparse.ArgumentParser) -> None:
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument("--reports", type=Path, default=Path("reports"), metavar="DIR")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    options = parser().parse_args(arguments)
    from bench.api import BenchError

    try:
        return int(globals()[f"_{options.command}"](options))
    except BenchError as error:
        print(f"sparsebench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        say("stopped; finished cells are kept, the same command goes on from here", sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe left; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def say(text: str, stream: Any = None) -> None:
    """The one place that prints."""
    print(text, file=stream or sys.stdout, flush=True)


def _list(options: argparse.Namespace) -> int:
    from bench import registry

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


def _plan(options: argparse.Namespace) -> int:
    _, store, cells = _resolve(options)
    _show_plan(_planned(options, store, cells))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    _, _, cells = _resolve(options)
    missing = _prepare(cells)
    for line in sorted(set(missing.values())):
        say(f"sparsebench: {line}", sys.stderr)
    return 2 if missing else 0


def _run(options: argparse.Namespace) -> int:
    from bench import plan

    _, store, cells = _resolve(options)
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
        from bench.reporting import leaderboard

        say(leaderboard.table(found))
    pages = _write_pages(store, options.reports)
    say(
        f"\n{len(done)} of {len(cells)} cells done; "
        f"records in {options.results}/, pages: {pages[0]}"
    )
    return 1 if failures else 0


def _report(options: argparse.Namespace) -> int:
    from bench.store import Store

    for path in _write_pages(Store(options.results), options.reports):
        say(str(path))
    return 0


def _tune(options: argparse.Namespace) -> int:
    from bench import plan, run

    if not options.method:
        from bench.api import BenchError

        raise BenchError("tune needs --method")
    _, _, cells = _resolve(options)
    cells = [cell for cell in cells if cell.method in options.method]
    for cell in cells:
        if plan.needs_reference(cell) and not plan.trained_dir(plan.reference_of(cell)).is_dir():
            run.run_cell(plan.reference_of(cell), lambda *_: None)
        scores = run.tune_cell(cell, lambda *_: None)
        say(f"{cell}: " + " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    return 0


def _prune(options: argparse.Namespace) -> int:
    from bench.prune import prune

    found = prune(
        options.model,
        options.method,
        options.out.expanduser(),
        pattern=options.pattern,
        sparsity=options.sparsity,
        overrides=settings(options.set),
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


def _speed(options: argparse.Namespace) -> int:
    from bench import speed

    methods = options.method or speed.default_methods()
    say(
        speed.table(
            methods, options.model, options.batch, options.length, options.steps, options.dtype
        )
    )
    return 0


def _resolve(options: argparse.Namespace) -> tuple[Suite, Store, list[Cell]]:
    from bench import plan, registry
    from bench.store import Store

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
    if options.set:
        changes["overrides"] = tuple(
            sorted({**dict(suite.overrides), **settings(options.set)}.items())
        )
    suite = dataclasses.replace(suite, **changes)
    cells = plan.expand(suite, options.method or (), explicit=bool(options.pattern))
    return suite, Store(options.results), cells


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, values as TOML has them or else as text."""
    import tomllib

    from bench.api import BenchError

    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BenchError(f"--set {pair}: write KEY=VALUE, as lr=1e-4")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def _planned(options: argparse.Namespace, store: Store, cells: Sequence[Cell]) -> list[Planned]:
    from bench import plan

    return plan.plan(cells, store, rerun=getattr(options, "rerun", False))


def _show_plan(planned: Sequence[Planned]) -> None:
    for item in planned:
        say(f"{item.state:8} {'run ' if item.todo else 'keep'} {item.cell}")
    say(f"{sum(item.todo for item in planned)} of {len(planned)} cells to run")


def _prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Fetches data and weights once, before any cell starts; cells that lack something → why."""
    from bench import models, plan, registry
    from bench.api import BenchError

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
    from bench.reporting import leaderboard
    from bench.store import disk_error

    records, problems = store.records()
    try:
        return leaderboard.write_pages(records, problems, folder)
    except OSError as error:
        raise disk_error(folder, error) from error


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
