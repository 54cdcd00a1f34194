"""A tree of records: one file a record. It serves as database, cache and resume state.

`results/` holds what the project publishes, and `results/local/` what was run on this machine.

A record's path depends only on its cell, so two writers never mix two cells in one file. Each write
is atomic: write a temporary file beside the target, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bench.core.cell import Cell, canonical
from bench.core.errors import BenchError
from bench.core.files import disk_error, write_atomic
from bench.core.record import PUBLISHED, Record, parse, verified
from bench.core.record_parts import Versions

State = Literal["missing", "done", "failed", "stale", "corrupt"]

_COMPONENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def slug(name: str) -> str:
    """Returns `name` as one path component: `glue/rte` → `glue.rte`."""
    return name.replace("/", ".").lower()


def path_of(cell: Cell) -> Path:
    """Returns the path of the cell's record, relative to the tree.

    Raises:
        BenchError: a component of the path is not a plain name.
    """
    level = f"{cell.sparsity:.4f}".rstrip("0")
    level += "0" * (2 - len(level.split(".")[1]))
    variant = f"{cell.pattern.slug}-{level}"
    if cell.budget != "default" or cell.overrides:
        changed = canonical([cell.budget, cell.overrides.flat])
        variant += f"-{hashlib.sha256(changed).hexdigest()[:6]}"
    parts = (slug(cell.task), slug(cell.model), slug(cell.method), variant)
    for part in parts:
        if not _COMPONENT.fullmatch(part):
            raise BenchError(f"{part!r} cannot stand in a path; use {_COMPONENT.pattern}")
    return Path(*parts, f"seed{cell.seed}.json")


class Store:
    """Reads and writes records below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell) -> Path:
        """Returns the path of the cell's record."""
        return self.root / path_of(cell)

    def failed_path(self, cell: Cell) -> Path:
        """Returns the path of the record of the cell's failure."""
        return self.path(cell).with_suffix(".failed.json")

    def put(self, record: Record) -> Path:
        """Writes a record and returns its path. A done record removes the cell's failure.

        Raises:
            BenchError: kind `disk`; it names the path, and the old record is intact.
        """
        done, failed = self.path(record.cell), self.failed_path(record.cell)
        path = done if record.status == "done" else failed
        try:
            if self._corrupt(path, record.cell):
                os.replace(path, path.with_suffix(".json.corrupt"))
            write_atomic(path, record.to_json())
            if record.status == "done":
                failed.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error
        return path

    def get(self, cell: Cell) -> Record | None:
        """Returns the cell's record, else the record of its failure, else None.

        Raises:
            BenchError: the file is not a record of this cell.
        """
        for path in (self.path(cell), self.failed_path(cell), self.path(cell)):
            # A failure may have become a record since it was looked for.
            with suppress(FileNotFoundError):
                return self.load(path)
        return None

    def load(self, path: Path) -> Record:
        """Reads and validates one file.

        Raises:
            BenchError: the file is corrupt or not readable, or its cell belongs to another path.
            FileNotFoundError: there is none.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BenchError(f"{path}: {error.strerror}") from None
        record = parse(content, str(path))
        expected = (
            self.path(record.cell) if record.status == "done" else self.failed_path(record.cell)
        )
        if path.resolve() != expected.resolve():
            raise BenchError(f"{path}: corrupt record: its cell belongs to {expected}")
        return record

    def state(self, cell: Cell, versions: Versions) -> State:
        """Returns the state of a cell's record; `stale` means made by another version.

        Args:
            cell: the cell.
            versions: present versions of its method and its task.
        """
        try:
            record = self.get(cell)
        except BenchError:
            return "corrupt"
        if record is None:
            return "missing"
        if record.status == "failed":
            return "failed"
        return "done" if record.versions == versions else "stale"

    def records(self) -> tuple[list[Record], list[str]]:
        """Returns all done records, ordered by path, and one line for each corrupt file."""
        done, bad = [], []
        for path in self._files():
            try:
                record = self.load(path)
            except FileNotFoundError:
                continue  # another process has replaced a failure by a record
            except BenchError as error:
                bad.append(str(error))
                continue
            if record.status == "done":
                done.append(record)
        return done, bad

    def published(self) -> list[Record]:
        """Returns the done records that the project made, marked as published."""
        return [
            r.model_copy(update={"origin": PUBLISHED}) for r in self.records()[0] if verified(r)
        ]

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.root.glob("*/*/*/*/seed*.json")))

    def _corrupt(self, path: Path, cell: Cell) -> bool:
        if not path.exists():
            return False
        try:
            return self.load(path).cell != cell
        except BenchError:
            return True
