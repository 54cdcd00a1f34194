"""The command `worker`: run cells for a dask scheduler."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bench.cli.flags import add_command, add_tls, positive
from bench.cli.output import warn

if TYPE_CHECKING:
    pass


def add_commands(commands: Any) -> None:
    """Adds `worker`."""
    command = add_command(
        commands,
        "worker",
        work,
        "Run cells for a dask scheduler until it stops.",
        ("worker tcp://127.0.0.1:8786", "worker tls://10.0.0.1:8786 --listen 10.0.0.2"),
    )
    command.add_argument("address", metavar="ADDRESS", help="of the scheduler: tcp://host:8786")
    command.add_argument(
        "--slots",
        type=positive,
        metavar="N",
        help="cells at a time (default: one for each GPU, without GPUs 1)",
    )
    command.add_argument(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs, or processes, for each cell (default: 1)",
    )
    command.add_argument(
        "--listen",
        metavar="HOST",
        help="address of this machine for others (default: loopback only)",
    )
    add_tls(command)


def work(options: argparse.Namespace) -> int:
    """Runs the cells of a scheduler until it stops."""
    from bench.engine.dask_worker import security_of, serve

    security = security_of(options.tls_ca_file, options.tls_cert, options.tls_key)
    serve(options.address, options.slots, options.devices, options.listen, security)
    warn(f"the scheduler at {options.address} has stopped")
    return 1
