"""The command line: `sparsebench` or `python -m bench`.

Exit codes: 0 all is done; 1 a cell is not done; 2 bad input, or what is needed cannot be had;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from bench.cli.output import say
from bench.cli.selection import add_folders, add_selection, add_tls, positive

COMMANDS = {
    "list": "listing.what_there_is",
    "plan": "run.plan_cells",
    "run": "run.run_cells",
    "worker": "worker.work",
    "fetch": "run.fetch",
    "tune": "run.tune",
    "report": "run.report",
    "prune": "models.prune_model",
    "export": "models.export_model",
    "load": "models.load_model",
    "pretrain": "models.pretrain_model",
    "speed": "models.speed_table",
    "latency": "models.latency_table",
    "count": "models.count_model",
    "verify": "run.verify",
    "check": "results.check",
    "submit": "results.submit",
    "compare": "results.compare_methods",
    "claims": "results.check_claims",
    "table": "results.export_table",
}
"""Command → module and function below `bench.cli.main`."""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without listing all that would be right."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sparsebench: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and flags; imports nothing heavy."""
    top = _Parser(
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
        add_selection(command)
        if name == "run":
            command.add_argument("--jobs", type=positive, default=1, help="cells at a time")
            command.add_argument(
                "--engine", choices=("local", "dask"), default="local", help="where cells run"
            )
            command.add_argument(
                "--scheduler", metavar="ADDRESS", help="of --engine dask, as tcp://host:8786"
            )
            add_tls(command)
            command.add_argument(
                "--dry-run", action="store_true", help="show the plan, run nothing"
            )
            command.add_argument("--rerun", action="store_true", help="run finished cells again")
            command.add_argument(
                "--timeout", type=positive, metavar="SECONDS", help="of a cell (its budget's)"
            )
            command.add_argument(
                "--fail-fast", action="store_true", help="stop everything when a cell fails"
            )
            command.add_argument(
                "--keep-going",
                action="store_false",
                dest="fail_fast",
                help="run what can be run whatever fails (the default)",
            )
        if name in ("plan", "run"):
            command.add_argument(
                "--retry-failed",
                action=argparse.BooleanOptionalAction,
                default=True,
                help="run cells again that have failed (the default)",
            )
        add_folders(command)

    worker = commands.add_parser("worker", help="run cells for a dask scheduler")
    worker.add_argument("address", metavar="ADDRESS", help="the scheduler's, as tcp://host:8786")
    worker.add_argument(
        "--slots", type=positive, metavar="N", help="cells at a time (one a GPU; without GPUs, 1)"
    )
    worker.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="GPUs a cell, or processes (1)"
    )
    worker.add_argument(
        "--listen", metavar="HOST", help="this machine's address for others (loopback only)"
    )
    add_tls(worker)

    report = commands.add_parser("report", help="write the pages in reports/ from results/")
    add_folders(report)

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
    prune.add_argument("--calib", type=positive, default=128, metavar="N", help="sequences")
    prune.add_argument("--length", type=positive, metavar="L", help="tokens a sequence (512)")
    prune.add_argument("--seed", type=int, default=1, metavar="K")
    prune.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")

    export = commands.add_parser("export", help="pack a cell's model, or a folder, into a file")
    export.add_argument("source", metavar="CELL", help="a record's path, or a model's folder")
    export.add_argument(
        "--format",
        required=True,
        metavar="F",
        help="hf, bitmap, csr, nm-packed, int8, int4, or both as bitmap+int4",
    )
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty")
    export.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="of what is not packed (the model's)"
    )
    export.add_argument(
        "--embeddings",
        choices=("int8", "int4"),
        help="round embeddings too, and an LM head that is not tied to them (no)",
    )
    export.add_argument("--group", type=int, choices=(64, 128), help="inputs a scale (64)")
    export.add_argument(
        "--asymmetric", action="store_true", default=None, help="a zero point a group"
    )
    export.add_argument("--slice", action="store_true", help="take dead heads and neurons out")

    load = commands.add_parser("load", help="check an exported folder; back to transformers")
    load.add_argument("folder", type=Path, metavar="DIR")
    load.add_argument("--out", type=Path, metavar="HF_DIR", help="new or empty")

    pretrain = commands.add_parser("pretrain", help="train gpt2-mini from scratch, into the cache")
    pretrain.add_argument(
        "--text",
        default="nlg/e2e",
        metavar="SOURCE",
        help="a task's train text, or a folder of .txt",
    )
    pretrain.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of the recipe"
    )

    speed = commands.add_parser("speed", help="training-step time relative to dense fine-tuning")
    speed.add_argument(
        "--method", action="extend", nargs="+", metavar="NAME[:SPARSITY[:KEY=VALUE]]"
    )
    speed.add_argument("--model", default="minilm-l6")
    speed.add_argument("--batch", type=positive, default=32)
    speed.add_argument("--length", type=positive, default=64)
    speed.add_argument("--steps", type=positive, default=15, help="timed steps of each method")
    speed.add_argument("--dtype", choices=("auto", "float32", "bf16"), default="auto")

    latency = commands.add_parser("latency", help="forward passes of saved models, side by side")
    latency.add_argument(
        "models", nargs="+", metavar="MODEL", help="folders, slugs or hub ids; the first is 1 ×"
    )
    latency.add_argument("--batch", type=positive, nargs="+", default=[1, 32], metavar="B")
    latency.add_argument("--length", type=positive, default=128, help="tokens a sequence")
    latency.add_argument("--turns", type=positive, default=30, help="timed passes at most")
    latency.add_argument("--seconds", type=float, default=60.0, help="for a setting, about")
    latency.add_argument("--dtype", choices=("auto", "float32", "bf16"), default="auto")

    count = commands.add_parser("count", help="what methods train, store and multiply; no weights")
    count.add_argument("model", metavar="MODEL", help="a slug, a hub id, a folder or a config.json")
    count.add_argument("--method", action="extend", nargs="+", metavar="NAME", help="default: all")
    count.add_argument("--pattern", metavar="P", help="by default each method's first")
    count.add_argument("--sparsity", metavar="S", type=float, default=0.5)
    count.add_argument("--length", type=positive, default=128, metavar="L", help="tokens")
    count.add_argument("--batch", type=positive, default=32, metavar="B", help="of an update")
    count.add_argument(
        "--device", choices=("cpu", "cuda"), help="realizable there; by default this machine's"
    )
    count.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    verify = commands.add_parser("verify", help="run a submitted record's cell and compare")
    verify.add_argument("record", type=Path, metavar="RECORD", help="a record's file")
    verify.add_argument("--rerun", action="store_true", help="also where the cell was run here")
    add_folders(verify)
    _judging(commands)
    return top


def _judging(commands: Any) -> None:
    """Commands that read records and run nothing (`bench.cli.results`)."""
    results: dict[str, Any] = {"type": Path, "default": Path("results"), "metavar": "DIR"}
    out: dict[str, Any] = {"type": Path, "metavar": "FILE", "help": "instead of printing it"}

    check = commands.add_parser("check", help="hold records against a baseline, or a submission")
    check.add_argument(
        "submission", type=Path, nargs="?", metavar="DIR", help="records from elsewhere"
    )
    check.add_argument("--results", **results)
    check.add_argument("--baseline", type=Path, metavar="FILE", help="what must not move")
    check.add_argument("--update", action="store_true", help="write the baseline, show its diff")
    check.add_argument("--out", **out)

    submit = commands.add_parser("submit", help="file records from elsewhere as unverified")
    submit.add_argument("submission", type=Path, metavar="DIR", help="laid out as results/ is")
    submit.add_argument("--results", **results)

    compare = commands.add_parser("compare", help="two methods, cell by cell, with tests")
    compare.add_argument("a", metavar="A", help="a method as tables name it: pst, 'pst lr=0.001'")
    compare.add_argument("b", metavar="B")
    compare.add_argument(
        "--task", nargs="+", action="extend", metavar="NAME", help="by default all"
    )
    compare.add_argument("--results", **results)
    compare.add_argument("--out", **out)

    claims = commands.add_parser("claims", help="what papers say beside what was found here")
    claims.add_argument("--results", **results)
    claims.add_argument("--out", **out)

    table = commands.add_parser("table", help="all records as a table for other programs")
    table.add_argument("--format", choices=("csv", "json", "latex", "parquet"), default="csv")
    table.add_argument("--results", **results)
    table.add_argument("--out", **out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    options = parser().parse_args(arguments)
    from bench.core.errors import BenchError

    try:
        module, _, function = COMMANDS[options.command].rpartition(".")
        return int(getattr(import_module(f"bench.cli.main.{module}"), function)(options))
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


if __name__ == "__main__":
    sys.exit(main())
