"""Cells on many machines, by dask.distributed: a scheduler, workers, and the driver as its client.

Plain dicts travel: a cell to a worker, its record back to the driver, which alone writes results.
Every slot is a worker process with one thread, and every cell a process of its own below it, so a
cell that dies takes nobody along. No file is shared: a worker has its own cache.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from bench import engines, isolate
from bench.api import BenchError, Cell
from bench.cli import say
from bench.isolate import failed
from bench.parallel import ALONE, Means
from bench.record import Record

try:
    import dask
    from distributed import Client, KilledWorker, Nanny, Security, get_worker
    from distributed.comm.addressing import get_address_host
    from distributed.worker import WORKER_ANY_RUNNING
except ImportError:
    raise BenchError("many machines need dask: pip install 'sparsebench[cluster]'") from None

CONNECT_S = 10.0

LOOK_S = 1.0
"""Seconds between two looks at whether somebody still waits for a running cell."""

Json = dict[str, Any]


class Dask(engines.Engine):
    """The workers of a scheduler.

    Args:
        address: the scheduler's, as `tcp://host:8786` or `tls://…`.
        security: certificates for TLS.
        timeout_s: after which a cell is stopped; by default its budget says.
        means: what cells are run with.

    Raises:
        BenchError: nobody answers there.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        timeout_s: float | None = None,
        means: Means = ALONE,
    ) -> None:
        for name in ("distributed", "distributed.client"):  # both have a handler of their own
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.address, self.timeout_s, self.means = address, timeout_s, means
        try:
            self.client = Client(
                address, security=security, timeout=CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:
            raise BenchError(f"no scheduler answers at {address}: {error}") from None
        if not self._workers():
            say(f"no workers yet; start some with: sparsebench worker {address}", sys.stderr)

    @property
    def slots(self) -> int:
        """Worker processes that there are; one cell waits at the scheduler where there are none."""
        return max(1, self._workers())

    def submit(self, cell: Cell) -> Future[Record]:
        """Gives a cell to the scheduler, which has it run again if its worker is lost."""
        future: Future[Record] = Future()

        def done(remote: Any) -> None:
            try:
                future.set_result(self._record(cell, remote))
            except BaseException as error:
                future.set_exception(error)  # whatever it is, nobody may wait for ever
            finally:
                remote.release()  # a result kept on a worker would be computed again with its loss

        job = {
            "cell": cell.model_dump(mode="json"),
            "timeout_s": self.timeout_s,
            "means": asdict(self.means),
        }
        self.client.submit(run_job, job, pure=False).add_done_callback(done)
        return future

    def stop(self) -> None:
        """Leaves the scheduler; workers end the cells that nobody waits for any more."""
        self.client.close(timeout=CONNECT_S)

    def _record(self, cell: Cell, remote: Any) -> Record:
        if remote.status == "error":
            error = remote.exception()
            if isinstance(error, KilledWorker):
                return failed(cell, "killed", f"every worker that had it was lost: {error}")
            return failed(cell, "error", f"on a worker: {type(error).__name__}: {error}")
        try:
            record = Record.model_validate(remote.result())
        except ValidationError as error:
            return failed(cell, "contract", f"a worker's answer is no record: {error}")
        except (OSError, CancelledError):
            raise self._lost() from None
        if record.cell != cell:
            return failed(cell, "contract", f"a worker answered with the record of {record.cell}")
        return record

    def _workers(self) -> int:
        try:
            return len(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, CancelledError, RuntimeError):
            raise self._lost() from None

    def _lost(self) -> BenchError:
        kept = "finished cells are kept, the same command goes on from here"
        return BenchError(f"the scheduler at {self.address} is lost; {kept}")


def run_job(job: Json) -> Json:
    """Runs a cell on a worker: `{cell, timeout_s, means}` → its record."""
    cell, means = Cell.model_validate(job["cell"]), Means(**job["means"])
    with _while_wanted():
        record = engines.run_here(cell, lambda *_: None, job["timeout_s"], means=means)
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
    shares = engines.shares(slots, options.devices)
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
