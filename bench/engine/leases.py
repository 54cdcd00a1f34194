"""Who runs which cell, so that two drivers on one tree do not do the same work twice.

A lease is a hidden file beside the record, kept alive by filelock. It is advice: a lost or doubled
lease costs work, never correctness, because records are written whole and the same cell gives the
same record.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from bench.core.cell import Cell
from bench.core.record import Record
from bench.core.store import Store

BEAT_S = 5.0
"""Seconds between two signs of life."""

LEASE_S = 60.0
"""A lease without a sign of life for so many seconds is nobody's."""


class Leases:
    """The leases of one driver; a context that gives all of them back at its end.

    Args:
        store: the tree whose cells are leased.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before: dict[Path, object] = {}
        self.held: dict[Cell, SoftFileLease] = {}

    def __enter__(self) -> Leases:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for cell in list(self.held):
            self.drop(cell)

    def take(self, cell: Cell) -> bool:
        """Leases the cell; false if another living driver has.

        Where no lease can be written, the cell is taken without one: the record will tell.
        """
        if cell in self.held:
            return True
        path = self.path(cell)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_silent(path)
            lease = SoftFileLease(
                path, lease_duration=LEASE_S, heartbeat_interval=BEAT_S, thread_local=False
            )
            lease.acquire(blocking=False)
        except (Timeout, LeaseSettingsMismatch):
            return False
        except OSError:  # a lease of another user is there, but cannot be opened
            return not os.path.lexists(path)
        self.held[cell] = lease
        return True

    def drop(self, cell: Cell) -> None:
        """Gives the lease back, once the record is written."""
        if lease := self.held.pop(cell, None):
            with contextlib.suppress(OSError):
                lease.release()

    def begin(self, cells: Iterable[Cell]) -> None:
        """Notes the records that there are of these cells, to know later which are new."""
        self.before = {path: _identity(path) for cell in cells for path in self._records(cell)}

    def settled(self, cell: Cell) -> Record | None:
        """Returns the cell's record if another driver has written it since `begin`."""
        for path in self._records(cell):
            identity = _identity(path)
            if identity is not None and identity != self.before.get(path):
                return self.store.load(path)
        return None

    def path(self, cell: Cell) -> Path:
        """Returns where the lease of a cell lies."""
        record = self.store.path(cell)
        return record.with_name(f".{record.stem}.lease")

    def _records(self, cell: Cell) -> tuple[Path, Path]:
        return self.store.path(cell), self.store.failed_path(cell)


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what differs for every file that is put there; None without a file.

    Not the time alone: file systems count it in steps of some milliseconds.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remove_silent(path: Path) -> None:
    """Removes a lease that has shown no sign of life.

    filelock itself takes over from a dead process of this machine, but leaves two kinds of file
    alone for ever: an empty one, as a power cut leaves it, and any silent one where the file system
    cannot exchange two names in one step, as NFS cannot.
    """
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > LEASE_S:
            path.unlink()
