"""Cells on many machines, by dask.distributed: a scheduler, workers, and the driver as its client.

Plain dicts travel: a cell to a worker, its record back to the driver, which alone writes results.
Every slot is a worker process with one thread, and every cell a process of its own below it, so a
cell that dies takes nobody along. No file is shared: a worker has its own cache.
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
        address: the scheduler's, as `tcp://host:8786` or `tls://…`.
        security: certificates for TLS.
        timeout_s: after which a cell is stopped; by default its budget says.
        settings: what cells are run with.

    Raises:
        BenchError: nobody answers there.
    """

    def __init__(
        self,
        address: str,
        security: Security,
        timeout_s: float | None = None,
        settings: RunSettings = DEFAULTS,
    ) -> None:
        for name in ("distributed", "distributed.client"):  # both have a handler of their own
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
        """Worker processes that there are; one cell waits at the scheduler where there are none."""
        return max(1, self._workers())

    def submit(self, job: Job) -> Future[Record]:
        """Gives a cell to the scheduler, which has it run again if its worker is lost."""
        future: Future[Record] = Future()

        def done(remote: Any) -> None:
            try:
                future.set_result(self._record(job, remote))
            except BaseException as error:
                future.set_exception(error)  # whatever it is, nobody may wait for ever
            finally:
                remote.release()  # a result kept on a worker would be computed again with its loss

        order = {
            "cell": job.cell.model_dump(mode="json"),
            "timeout_s": self.timeout_s,
            "settings": asdict(self.settings),
        }
        self.client.submit(run_job, order, pure=False).add_done_callback(done)
        return future

    def stop(self) -> None:
        """Leaves the scheduler; workers end the cells that nobody waits for any more."""
        self.client.close(timeout=CONNECT_S)

    def _record(self, job: Job, remote: Any) -> Record:
        if remote.status == "error":
            error = remote.exception()
            if isinstance(error, KilledWorker):
                return failed(job, "killed", f"every worker that had it was lost: {error}")
            return failed(job, "error", f"on a worker: {type(error).__name__}: {error}")
        try:
            record = Record.model_validate(remote.result())
        except ValidationError as error:
            return failed(job, "contract", f"a worker's answer is no record: {error}")
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
        kept = "finished cells are kept, the same command goes on from here"
        return BenchError(f"the scheduler at {self.address} is lost; {kept}")
