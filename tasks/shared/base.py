"""What the families of tasks share: rows that are loaded once, and where they came from."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from bench.api import Source
from bench.core import provenance


class Base(ABC):
    """A task whose three splits `_load` gives, as an object with `repo`, `revision`,
    `select_rule` and `subset` beside them.
    """

    limit = 0

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def _load(self) -> Any:
        """The splits; called once."""

    @abstractmethod
    def _rows(self) -> Iterable[Mapping[str, object]]:
        """All rows in a fixed order, for the fingerprint."""

    @cached_property
    def data(self) -> Any:
        """The splits, loaded once a process."""
        return self._load()

    def prepare(self) -> None:
        """Fetches the rows.

        Raises:
            BenchError: kind `offline` when they are nowhere to be had.
        """
        _ = self.data

    def source(self) -> Source:
        """Where the rows came from, with a sha256 over all of them."""
        data = self.data
        return Source(
            repo=data.repo,
            revision=data.revision,
            fingerprint=provenance.rows_sha256(self._rows()),
            select=data.select_rule,
            subset=data.subset,
        )


def position(text: str) -> float:
    """Where a text falls in [0, 1): a hash, so that a split by position never moves."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
