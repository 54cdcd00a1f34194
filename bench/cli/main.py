"""The command line: `sparsebench` or `python -m bench`.

Exit codes: 0 done; 1 a cell or a check failed; 2 bad input, or something needed is not available;
130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from bench.cli import costs, listing, models, results, review, run, tune, worker
from bench.cli.flags import Parser
from bench.cli.output import warn


def parser() -> Parser:
    """Makes the parser of all commands; imports nothing heavy."""
    top = Parser(
        prog="sparsebench", description="A fair benchmark of sparsity methods for language models."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (listing, run, tune, results, review, costs, models, worker):
        group.add_commands(commands)
    return top


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command stops as by Ctrl-C, with its children and temporary folders."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated`; only a main thread may ask for that."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="sparsebench: %(message)s")
    from bench.core.errors import BenchError

    try:
        with terminable():
            return int(options.handler(options))
    except BenchError as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        warn("stopped; finished cells are kept, run the same command to continue")
        return 143 if isinstance(stopped, Terminated) else 130
    except BrokenPipeError:
        # The reader of a pipe left; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
