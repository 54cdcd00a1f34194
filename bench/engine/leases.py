"""Who runs which cell, so that two drivers on one tree do not do the same work twice.

A claim is a hidden file beside the record's place, touched while its owner lives. It is advice:
a lost or doubled claim costs work, never correctness, because records are written whole and the
same cell gives the same record.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from bench.core.cell import Cell
from bench.core.record import Record
from bench.core.store import Store

BEAT_S = 5.0
STALE_S = 60.0
"""A claim that nobody has touched for so long is nobody's."""


class Leases:
    """The leases of one driver; a context, in which they are kept alive.

    Args:
        store: the tree whose cells are claimed.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before: dict[Path, object] = {}
        self.mine: set[Path] = set()
        self.over = threading.Event()
        self.heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Leases:
        self.heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self.heart.join()
        for path in list(self.mine):
            self._drop(path)

    def take(self, cell: Cell) -> bool:
        """Leases the cell; false if another living driver has.

        Where no claim can be written, the cell is taken without one: the record will tell.
        """
        path = self._path(cell)
        if path in self.mine:
            return True
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _is_stale(path):
                path.unlink(missing_ok=True)
            try:
                with open(path, "x", encoding="utf-8") as file:
                    json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            except FileExistsError:
                return False
            self.mine.add(path)
        return True

    def drop(self, cell: Cell) -> None:
        """Gives the claim up, once the record is written."""
        self._drop(self._path(cell))

    def begin(self, cells: Iterable[Cell]) -> None:
        """Notes the records that there are of these cells, to know later which are new."""
        self.before = {path: _written(path) for cell in cells for path in self._records(cell)}

    def settled(self, cell: Cell) -> Record | None:
        """The cell's record if another driver has written it since `begin`."""
        for path in self._records(cell):
            written = _written(path)
            if written is not None and written != self.before.get(path):
                return self.store.load(path)
        return None

    def _records(self, cell: Cell) -> tuple[Path, Path]:
        return self.store.path(cell), self.store.failed_path(cell)

    def _path(self, cell: Cell) -> Path:
        place = self.store.path(cell)
        return place.with_name(f".{place.stem}.claim")

    def _drop(self, path: Path) -> None:
        if path in self.mine:
            self.mine.discard(path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self.over.wait(BEAT_S):
            for path in list(self.mine):
                with contextlib.suppress(OSError):
                    os.utime(path)


def _written(path: Path) -> tuple[int, int] | None:
    """What is another one for every file that is put there; None without a file.

    Not the time alone: file systems count it in steps of some milliseconds.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_stale(path: Path) -> bool:
    """Whether the owner is silent, or known to be dead."""
    try:
        age = time.time() - path.stat().st_mtime
        claim = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        claim = {}
    if age > STALE_S:
        return True
    if not isinstance(claim, dict) or claim.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(claim["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False
