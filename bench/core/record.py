"""The record of a cell, validated because records may come from strangers; fields in file order."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from bench.core.cell import BudgetField, Cell
from bench.core.errors import BenchError, first_error
from bench.core.overrides import Scalar
from bench.core.record_parts import (
    Bytes,
    Code,
    Cost,
    Data,
    Failure,
    Finite,
    Macs,
    Model,
    Params,
    Part,
    ScoresPart,
    Sparsity,
    Speed,
    Text,
    Versions,
)


class Record(Part):
    """The outcome of one cell. A done record has all parts; a failed one has `error` instead.

    `report` holds the numbers that the method reports of its run (`Method.report`).
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    cell: Cell
    key: str
    versions: Versions
    status: Literal["done", "failed"]
    budget: BudgetField | None = None
    hyper: dict[str, Scalar | None] = {}
    scores: ScoresPart | None = None
    params: Params | None = None
    sparsity: Sparsity | None = None
    macs: Macs | None = None
    bytes: Bytes | None = None
    cost: Cost | None = None
    report: dict[Text, Finite] = {}
    speed: list[Speed] = []
    data: Data | None = None
    model: Model | None = None
    code: Code
    env: dict[str, Scalar] = {}
    origin: Text = "local"
    error: Failure | None = None
    time: Text

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)

    @model_validator(mode="after")
    def _complete(self) -> Record:
        if self.key != self.cell.key:
            raise ValueError("key is not the sha256 of the cell")
        if self.status == "failed":
            if self.error is None:
                raise ValueError("a failed record needs an error")
            return self
        parts = ("scores", "params", "sparsity", "macs", "bytes", "cost", "data", "model", "budget")
        if missing := [name for name in parts if getattr(self, name) is None]:
            raise ValueError(f"a done record needs {', '.join(missing)}")
        return self

    @property
    def members(self) -> tuple[Record, ...]:
        """The records that it is the mean of (`bench.reporting.mean_records`); else itself."""
        return (self,)

    def to_json(self) -> str:
        """Returns the file's text, with floats of six significant digits and a final newline.

        Raises:
            BenchError: kind `nan`: a number is not finite.
        """
        tree = _six_digits(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str | bytes, where: str) -> Record:
    """Parses and validates the JSON of a record.

    Raises:
        BenchError: the text is not a record; the line names `where` and the first error.
    """
    try:
        tree = json.loads(text, parse_constant=_refuse)
        return Record.model_validate(tree)
    except ValidationError as error:
        raise BenchError(f"{where}: corrupt record: {first_error(error)}") from None
    except (BenchError, ValueError, TypeError, RecursionError) as error:
        raise BenchError(f"{where}: corrupt record: {error}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def _six_digits(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BenchError("a record holds finite numbers only", "nan")
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        # The cell is the record's identity and keeps its exact numbers.
        return {k: v if k in ("cell", "hyper") else _six_digits(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_six_digits(v) for v in value]
    return value


LOCAL = "local"
"""The origin of records that were made in this checkout."""

PUBLISHED = "published"
"""The origin of the project's records where they stand beside those of this machine.

Their files say `local`; `Store.published` sets it when it reads them.
"""


def verified(record: Record) -> bool:
    """Tells whether the project ran the cell itself; a submission's `origin` is its sender."""
    return record.origin in (LOCAL, PUBLISHED)


def number(record: Record, path: str) -> int | float | None:
    """Returns a number of a record by its path, as `macs.effective`; None where it is absent."""
    value: Any = record
    for name in path.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]
