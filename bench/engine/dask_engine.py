"""Runs cells on many machines with dask.distributed: scheduler, workers, and the driver as client.

Messages are plain dicts: a cell goes to a worker, and its record comes back. Only the driver writes
results. Each slot is a worker process with one thread. Each cell is a separate process below it, so
a cell that dies ends nothing else. Machines share no files; each worker has its own cache.
"""

from __future__ import annotations

import logging
from concurrent.futures import CancelledError, Future
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from bench.core.errors import BenchError
from bench.core.record import Record
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.engine import scheduler
from bench.engine.dask_worker import run_job
from bench.engine.messages import failed
from bench.planning.job import Job

try:
    from distributed import Client, KilledWorker, Security
except ImportError:
    raise BenchError("many machines need dask: pip install 'sparsebench[cluster]'") from None

log = logging.getLogger(__name__)

CONNECT_S = 10.0


class Dask(scheduler.Engine):
    """The workers of a scheduler.

    Args:
        address: address of the scheduler, as `tcp://host:8786` or `tls://…`.
        security: certificates for TLS.
        timeout_s: time limit of a cell in seconds; by default that of its budget.
        settings: settings of all runs.

    Raises:
        BenchError: no scheduler answers at the address.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        timeout_s: float | None = None,
        settings: RunSettings = DEFAULTS,
    ) -> None:
        for name in ("distributed", "distributed.client"):  # each has its own handler
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.address, self.timeout_s, self.settings = address, timeout_s, settings
        try:
            self.client = Client(
                address, security=security, timeout=CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:
            raise BenchError(f"no scheduler answers at {address}: {error}") from None
        if not self._workers():
            log.warning("no workers yet; start some with: sparsebench worker %s", address)

    @property
    def slots(self) -> int:
        """Number of worker processes, at least 1: without workers a cell waits at the scheduler."""
        return max(1, self._workers())

    def submit(self, job: Job) -> Future[Record]:
        """Submits a cell to the scheduler, which runs it again if its worker is lost."""
        future: Future[Record] = Future()

        def done(remote: Any) -> None:
            try:
                future.set_result(self._record(job, remote))
            except BaseException as error:
                future.set_exception(error)  # after any error, so that nobody waits for ever
            finally:
                remote.release()  # a result kept on a lost worker would be computed again

        more = {"timeout_s": self.timeout_s, "settings": asdict(self.settings)}
        order = job.order | more
        self.client.submit(run_job, order, pure=False).add_done_callback(done)
        return future

    def stop(self) -> None:
        """Disconnects from the scheduler; workers then kill cells that nobody waits for."""
        self.client.close(timeout=CONNECT_S)

    def _record(self, job: Job, remote: Any) -> Record:
        if remote.status == "error":
            error = remote.exception()
            if isinstance(error, KilledWorker):
                return failed(job, "killed", f"every worker that ran it was lost: {error}")
            return failed(job, "error", f"on a worker: {type(error).__name__}: {error}")
        try:
            record = Record.model_validate(remote.result())
        except ValidationError as error:
            return failed(job, "contract", f"a worker's answer is not a record: {error}")
        except (OSError, CancelledError):
            raise self._lost() from None
        if record.cell != job.cell:
            return failed(job, "contract", f"a worker answered with the record of {record.cell}")
        return record

    def _workers(self) -> int:
        try:
            return len(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, CancelledError, RuntimeError):
            raise self._lost() from None

    def _lost(self) -> BenchError:
        kept = "finished cells are kept; run the same command again to continue"
        return BenchError(f"the scheduler at {self.address} is lost; {kept}")
