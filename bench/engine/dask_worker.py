"""Runs the cells of a dask scheduler on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.core.errors import BenchError
from bench.core.run_settings import RunSettings
from bench.engine import isolate, local
from bench.engine.local import run_here
from bench.planning.job import Job

try:
    import dask
    from distributed import Nanny, Security, get_worker
    from distributed.comm.addressing import get_address_host
    from distributed.worker import WORKER_ANY_RUNNING
except ImportError:
    raise BenchError("many machines need dask: pip install 'sparsebench[cluster]'") from None

LOOK_S = 1.0
"""Seconds between two checks whether somebody still waits for the running cell."""

Json = dict[str, Any]


def run_job(order: Json) -> Json:
    """Runs a cell on a worker and returns its record.

    Args:
        order: `Job.order` with `timeout_s` and `settings`.
    """
    job, settings = Job.of_order(order), RunSettings(**order["settings"])
    with _while_wanted():
        record = run_here(job, lambda *_: None, order["timeout_s"], settings=settings)
    answer: Json = json.loads(record.to_json())
    return answer


@contextlib.contextmanager
def _while_wanted() -> Iterator[None]:
    """Kills this worker's cell as soon as its driver or its scheduler is gone.

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


def serve(
    address: str, slots: int | None, devices: int, listen: str | None, security: Security
) -> None:
    """Runs the cells of a scheduler until the scheduler stops.

    Args:
        address: address of the scheduler, as `tcp://host:8786`.
        slots: number of cells at a time; by default one for each GPU.
        devices: number of GPUs for each cell.
        listen: address of this machine for others; by default only the loopback.
        security: certificates for TLS.

    Raises:
        BenchError: there is no scheduler, or it is on another machine and `listen` is missing.
    """
    import torch

    here = _is_loopback(address)
    if listen is None and not here:
        raise BenchError(
            f"{address} is another machine: pass --listen HOST, the address of this machine that "
            "it can reach. Anyone who can connect can execute code here, so use TLS."
        )
    slots = slots or max(1, torch.cuda.device_count() // devices)
    shares = local.shares(slots, devices)
    try:
        asyncio.run(_serve(address, shares, listen or "127.0.0.1", security))
    except OSError as error:
        raise BenchError(f"{address}: {error}") from None


async def _serve(
    address: str, shares: Sequence[Mapping[str, str]], host: str, security: Security
) -> None:
    # Keep dask from setting one thread a process, and let a worker start processes. It cannot see
    # the memory of the cells' processes.
    with dask.config.set(
        {"distributed.nanny.pre-spawn-environ": {}, "distributed.worker.daemon": False}
    ):
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


def security_of(ca_file: str | None, cert: str | None, key: str | None) -> Security:
    """Makes TLS settings from certificate files; without them dask's configuration applies."""
    if ca_file is None:
        return Security()
    return Security(
        require_encryption=True,
        tls_ca_file=ca_file,
        tls_client_cert=cert,
        tls_client_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
    )


def _is_loopback(address: str) -> bool:
    try:
        host = get_address_host(address)
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        hint = "not an address of a scheduler; write it as tcp://host:8786"
        raise BenchError(f"{address} is {hint}") from None
