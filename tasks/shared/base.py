"""What all task families share: splits that are loaded once, and where their rows came from."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from bench.api import BenchError, Source, Split, Task
from bench.core import provenance
from bench.core.errors import one_line
from bench.sources import hub
from tasks.shared import checks

if TYPE_CHECKING:
    from datasets import Dataset

Part = TypeVar("Part", bound=Sized)
"""What one split is: `Rows`, `Items` or a list of texts."""


@dataclass(frozen=True)
class Splits(Generic[Part]):
    """The three splits of a task and where their rows came from.

    Attributes:
        train: what methods train and calibrate on.
        select: a slice of the official train split, set apart for tuning.
        test: the reported split.
        repo: repository id, as the record names it.
        revision: the pinned revision, or `mirror`.
        select_rule: how `select` was cut from train, in words.
        subset: what is missing against the official data; empty when it is complete.
    """

    train: Part
    select: Part
    test: Part
    repo: str
    revision: str
    select_rule: str
    subset: str = ""

    def __getitem__(self, split: Split) -> Part:
        return {"train": self.train, "select": self.select, "test": self.test}[split]


class Base(Task, Generic[Part]):
    """A task whose splits `_load` returns."""

    limit = 0

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def _load(self) -> Splits[Part]:
        """Returns the splits; called once."""

    def _check(self, splits: Splits[Part]) -> None:
        """Raises BenchError where a row is not what the task's head and metric take."""

    @abstractmethod
    def _rows(self) -> Iterable[Mapping[str, object]]:
        """Yields all rows in a fixed order, for the fingerprint."""

    @cached_property
    def data(self) -> Splits[Part]:
        """The splits, loaded and checked once a process."""
        splits = self._load()
        if not len(splits.train):
            raise BenchError(f"{self.name} train: there are no rows")
        self._check(splits)
        return splits

    def prepare(self) -> None:
        """Fetches the rows.

        Raises:
            BenchError: kind `offline` when no source has them.
        """
        _ = self.data

    def source(self) -> Source:
        """Returns where the rows came from, with a sha256 over all of them."""
        data = self.data
        return Source(
            repo=data.repo,
            revision=data.revision,
            fingerprint=provenance.rows_sha256(self._rows()),
            select=data.select_rule,
            subset=data.subset,
        )


def position(text: str) -> float:
    """Returns a place in [0, 1) by the text's hash, so that a split by position never moves."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


class Carvable(Protocol):
    """Rows that `carve` can divide."""

    def split_keys(self) -> list[str]:
        """Returns one string a row; equal strings stay on one side."""

    def take(self, indices: Iterable[int]) -> Self:
        """Returns the rows at `indices`."""


Parsed = TypeVar("Parsed")
CarvedPart = TypeVar("CarvedPart", bound=Carvable)


def carve(rows: CarvedPart, fraction: float) -> tuple[CarvedPart, CarvedPart]:
    """Returns (train, select): `select` has the rows whose key's position is below `fraction`."""
    below = [position(key) < fraction for key in rows.split_keys()]
    train = rows.take(i for i, inside in enumerate(below) if not inside)
    return train, rows.take(i for i, inside in enumerate(below) if inside)


@dataclass(frozen=True)
class HubRows:
    """Splits as the hub has them.

    Attributes:
        task: the task that reads them, for messages.
        rows: the data set of each split.
        revision: how a record names it.
        missing: how the numbers of rows differ from the official ones; empty when they are equal.
    """

    task: str
    rows: dict[str, Dataset]
    revision: str
    missing: str

    def texts(self, split: str, column: str) -> list[str]:
        """Returns a column of texts.

        Raises:
            BenchError: there is no such column, or a row's value is no text.
        """
        return checks.texts(f"{self.task} {split}", column, self._column(split, column))

    def labels(self, split: str, column: str, classes: int) -> list[float]:
        """Returns a column of labels, 0 to `classes` − 1, or of numbers if `classes` is 1.

        Raises:
            BenchError: there is no such column, or a row's value is no label.
        """
        return checks.labels(f"{self.task} {split}", column, self._column(split, column), classes)

    def parsed(self, split: str, parse: Callable[[Mapping[str, Any]], Parsed]) -> list[Parsed]:
        """Returns what `parse` makes of each row.

        Raises:
            BenchError: a row has not the columns or types that `parse` expects.
        """
        found = []
        for i, row in enumerate(self.rows[split]):
            try:
                found.append(parse(row))
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise BenchError(
                    f"{self.task} {split} row {i}: not in the data set's form: {one_line(error)}"
                ) from None
        return found

    def _column(self, split: str, column: str) -> Iterable[object]:
        try:
            values: Iterable[object] = self.rows[split][column]
        except (KeyError, ValueError):
            raise BenchError(f"{self.task} {split}: there is no column {column!r}") from None
        return values


def load_splits(
    task: str, repo: str, config: str, official: Mapping[str, int], revision: str
) -> HubRows:
    """Loads the splits that `official` names, and compares them with its numbers of rows.

    Raises:
        BenchError: a split has no rows; kind `offline` when no source has one.
    """
    rows, missing, found_revision = {}, [], ""
    for split, expected in official.items():
        rows[split], found_revision = hub.load_split(repo, config, split, revision)
        n = len(rows[split])
        if not n:
            raise BenchError(f"{task} {split}: there are no rows in {repo}")
        if n != expected:
            missing.append(f"{split} {n} of {expected} rows")
    return HubRows(task, rows, found_revision, ", ".join(missing))
