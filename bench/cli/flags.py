"""Commands and the flags that several of them share; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Handler = Callable[[argparse.Namespace], int]

MANY: dict[str, Any] = {"action": "extend", "nargs": "+", "metavar": "NAME"}
"""Of a flag that takes several values and may be repeated."""


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 after one line that names the mistake."""
        self.exit(2, f"sparsebench: {message}; see {self.prog} --help\n")


def add_command(
    commands: Any, name: str, handler: Handler, summary: str, examples: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: the subparsers of the program.
        name: what a user types.
        handler: takes the parsed options and returns the exit code.
        summary: one sentence for the help.
        examples: command lines for the end of the command's help.
    """
    shown = "\n".join(["examples:", *(f"  sparsebench {line}" for line in examples)])
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=shown if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(handler=handler)
    return command


def positive(text: str) -> int:
    """Parses a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def above_zero(text: str) -> float:
    """Parses a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def add_results(command: argparse.ArgumentParser) -> None:
    """Adds --results."""
    command.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the records"
    )


def add_folders(command: argparse.ArgumentParser) -> None:
    """Adds --results and --reports."""
    add_results(command)
    command.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="folder of the pages"
    )


def add_out(command: argparse.ArgumentParser) -> None:
    """Adds --out FILE of a report."""
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write the report to a file instead of printing it"
    )


def add_settings(command: argparse.ArgumentParser, help: str) -> None:
    """Adds --set KEY=VALUE."""
    command.add_argument("--set", **{**MANY, "metavar": "KEY=VALUE"}, default=[], help=help)


def add_tls(command: argparse.ArgumentParser) -> None:
    """Adds the flags for dask's certificates."""
    for name, what in (
        ("ca-file", "certificates that are trusted"),
        ("cert", "certificate of this side"),
        ("key", "private key of this side"),
    ):
        command.add_argument(f"--tls-{name}", metavar="PEM", help=f"TLS: {what}")
