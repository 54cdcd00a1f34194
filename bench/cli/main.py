"""The command line: `sparsebench` or `python -m bench`.

Exit codes: 0 done; 1 a cell or a check failed; 2 bad input, or something needed is not available;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="sparsebench: %(message)s")
    from bench.core.errors import BenchError

    try:
        return int(options.handler(options))
    except BenchError as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt:
        warn("stopped; finished cells are kept, run the same command to continue")
        return 130
    except BrokenPipeError:
        # The reader of a pipe left; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
