"""Where a command's records lie: those of this machine, and the published ones beside them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.cli.flags import OWN, RESULTS

if TYPE_CHECKING:
    from bench.core.record import Record
    from bench.core.store import Store
    from bench.core.tuning import Choices


class Shelves(NamedTuple):
    """The records of this machine, and the published ones that only tables and estimates read.

    Attributes:
        own: what cells run into; its states decide what runs.
        published: None where --results names a folder, which then stands alone.
    """

    own: Store
    published: Store | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Shelves:
        """Returns the folders that --results stands for.

        Raises:
            BenchError: --results is the folder of the published records.
        """
        from bench.core.errors import BenchError
        from bench.core.provenance import ROOT
        from bench.core.store import Store

        folder: Path | None = options.results
        if folder is None:
            return cls(Store(OWN), Store(RESULTS) if RESULTS.is_dir() else None)
        if folder.resolve() == ROOT / RESULTS:
            raise BenchError(
                f"{folder} holds published records, which no run changes; leave --results out to "
                f"use {OWN}, then `sparsebench publish`"
            )
        return cls(Store(folder), None)

    @classmethod
    def to_read(cls, options: argparse.Namespace) -> Shelves:
        """Returns the same for a command that only reads.

        Raises:
            BenchError: --results is no folder, or the folder of the published records.
        """
        if options.results is not None:
            store_of(options.results)
        return cls.of(options)

    def choices(self) -> Choices:
        """Returns the choices of settings: this machine's go before the published ones.

        They do not depend on --results: what a suite's cells are must not depend on where their
        records lie.
        """
        from bench.core.tuning import Choices

        return Choices(*dict.fromkeys((self.own.root, OWN, RESULTS)))

    def published_records(self) -> list[Record]:
        """Returns the published records, marked as such."""
        return self.published.published() if self.published else []

    def records(self) -> tuple[list[Record], list[str]]:
        """Returns own records, then published ones; and one line for each corrupt own file."""
        own, problems = self.own.records()
        return [*own, *self.published_records()], problems


def store_of(folder: Path) -> Store:
    """Returns the store of a folder that must be there.

    Raises:
        BenchError: there is no such folder.
    """
    from bench.core.errors import BenchError
    from bench.core.store import Store

    if not folder.is_dir():
        raise BenchError(f"{folder}: no such folder; --results DIR is where the records are")
    return Store(folder)
