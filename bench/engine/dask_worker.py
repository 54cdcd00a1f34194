"""Runs the cells of a dask scheduler on this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.cli.output import say
from bench.core.cell import Cell
from bench.core.errors import BenchError
from bench.core.run_settings import RunSettings
from bench.engine import isolate, local
from bench.engine.local import run_here

try:
    import dask
    from distributed import Nanny, Security, get_worker
    from distributed.comm.addressing import get_address_host
    from distributed.worker import WORKER_ANY_RUNNING
except ImportError:
    raise BenchError("many machines need dask: pip install 'sparsebench[cluster]'") from None

LOOK_S = 1.0
"""Seconds between two looks at whether somebody still waits for a running cell."""

Json = dict[str, Any]


def run_job(job: Json) -> Json:
    """Runs a cell on a worker: `{cell, timeout_s, means}` → its record."""
    cell, means = Cell.model_validate(job["cell"]), RunSettings(**job["means"])
    with _while_wanted():
        record = run_here(cell, lambda *_: None, job["timeout_s"], means=means)
    answer: Json = json.loads(record.to_json())
    return answer


@contextlib.contextmanager
def _while_wanted() -> Iterator[None]:
    """Ends this worker's cell when its driver or its scheduler has gone.

    The worker has one thread for tasks, so all cells below this process belong to this task.
    """
    worker, over = get_worker(), threading.Event()
    key = worker.get_current_task()

    def watch() -> None:
        while not over.wait(LOOK_S):
            task = worker.state.tasks.get(key)
            closing = worker.status not in WORKER_ANY_RUNNING
            if task is None or task.state == "cancelled" or closing:
                isolate.kill_all()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def work(options: argparse.Namespace) -> int:
    """Runs the cells of a scheduler until it goes: one at a time a GPU, or `--slots`."""
    import torch

    host = options.listen
    here = _is_loopback(options.address)
    if host is None:
        host = "127.0.0.1"
        if not here:
            raise BenchError(
                f"{options.address} is another machine: say --listen HOST, the address of this one "
                "that it can reach. Who reaches it can run code here, so use TLS or a private net."
            )
    slots = options.slots or max(1, torch.cuda.device_count() // options.devices)
    shares = local.shares(slots, options.devices)
    try:
        asyncio.run(_serve(options.address, shares, host, security(options)))
    except OSError as error:
        raise BenchError(f"{options.address}: {error}") from None
    say(f"the scheduler at {options.address} has gone", sys.stderr)
    return 1


async def _serve(
    address: str, shares: Sequence[Mapping[str, str]], host: str, security: Security
) -> None:
    # dask would give every process one thread; memory is the cells' own, which it does not see.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        nannies = [
            Nanny(
                address, nthreads=1, memory_limit=0, env=dict(share), host=host, security=security
            )
            for share in shares
        ]
        try:
            await asyncio.gather(*nannies)
            await asyncio.gather(*(nanny.finished() for nanny in nannies))
        finally:
            await asyncio.gather(*(nanny.close(timeout=2) for nanny in nannies))


def security(options: argparse.Namespace) -> Security:
    """Certificates from the flags, else from dask's own configuration."""
    if options.tls_ca_file is None:
        return Security()
    return Security(
        require_encryption=True,
        tls_ca_file=options.tls_ca_file,
        tls_client_cert=options.tls_cert,
        tls_client_key=options.tls_key,
        tls_worker_cert=options.tls_cert,
        tls_worker_key=options.tls_key,
    )


def _is_loopback(address: str) -> bool:
    try:
        host = get_address_host(address)
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        what = "no address of a scheduler; write it as tcp://host:8786"
        raise BenchError(f"{address} is {what}") from None
