"""The tree `results/`: database, cache, resume state and review surface in one.

The path of a record is a function of its cell alone, so two writers write different files or the
same cell. A write is atomic: a temporary file beside the target, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bench.core.cell import Cell, canonical
from bench.core.errors import BenchError
from bench.core.files import disk_error, write_atomic
from bench.core.record import Record, Versions, parse

State = Literal["missing", "done", "failed", "stale", "corrupt"]

_COMPONENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def slug(name: str) -> str:
    """`name` as one path component: `glue/rte` → `glue.rte`."""
    return name.replace("/", ".").lower()


def path_of(cell: Cell) -> Path:
    """Path of the cell's record relative to the tree.

    Raises:
        BenchError: a component is no plain name.
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
        """Where the cell's record lies."""
        return self.root / path_of(cell)

    def failed_path(self, cell: Cell) -> Path:
        """Where the record of the cell's failure lies."""
        return self.path(cell).with_suffix(".failed.json")

    def put(self, record: Record) -> Path:
        """Writes a record; a success removes the cell's failure.

        Raises:
            BenchError: kind `disk`, naming the path; the old record is intact.
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
        """The cell's record, its failure, or None.

        Raises:
            BenchError: the file is no record of this cell.
        """
        for path in (self.path(cell), self.failed_path(cell)):
            if path.exists():
                return self.load(path)
        return None

    def load(self, path: Path) -> Record:
        """Reads and validates one file.

        Raises:
            BenchError: it is corrupt, or its cell belongs elsewhere.
        """
        record = parse(path.read_bytes(), str(path))
        expected = (
            self.path(record.cell) if record.status == "done" else self.failed_path(record.cell)
        )
        if path.resolve() != expected.resolve():
            raise BenchError(f"{path}: corrupt record: its cell belongs to {expected}")
        return record

    def state(self, cell: Cell, versions: Versions) -> State:
        """What is known of a cell; `stale` when the method's or task's version moved on."""
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
        """All done records by path, and one line for each file that is none."""
        found, bad = [], []
        for path in self._files():
            try:
                record = self.load(path)
            except BenchError as error:
                bad.append(str(error))
                continue
            if record.status == "done":
                found.append(record)
        return found, bad

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.root.glob("*/*/*/*/seed*.json")))

    def _corrupt(self, path: Path, cell: Cell) -> bool:
        if not path.exists():
            return False
        try:
            return self.load(path).cell != cell
        except BenchError:
            return True
