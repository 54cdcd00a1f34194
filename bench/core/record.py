"""The record of a cell, validated because records may come from strangers; fields in file order."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.core.cell import BudgetField, Cell
from bench.core.errors import BenchError, Outcome, first_error
from bench.core.overrides import Scalar

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=20_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Versions(_Part):
    """Versions of the method and the task; when either moves on, the record is stale."""

    method: int
    task: int


class ScoresPart(_Part):
    """`value` is the primary metric, `all` every metric, `items` one outcome an item.

    `notes` are footnotes, as why a metric is absent.
    """

    metric: Text
    higher_is_better: bool
    value: Finite
    all: dict[str, Finite]
    n: Count
    items: str | list[Finite] = ""
    notes: list[Text] | None = None

    @property
    def unit(self) -> int:
        """Factor of a score in print: fractions as percent, perplexity as it is."""
        return 100 if self.higher_is_better else 1


class Trainable(_Part):
    """Elements of the tensors that the optimizer held; the task's head counted apart."""

    body: Count
    head: Count


class PublishedPart(_Part):
    """The trained share that the method's paper prints, and ours of the same denominator.

    Both are fractions; `of` names the denominator, which has `denominator` elements in this model.
    `head`: whether the task's head is in the numerator. `setting` is the paper's.
    """

    share: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ours: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    of: Text
    denominator: Count
    head: bool
    setting: Text


class Params(_Part):
    """Elements: of the model, of the target set, non-zero there, kept on disk, trained.

    `stored` = nonzero + everything outside the target set (embeddings, biases, norms, heads),
    tied tensors once. `published` is absent where the paper prints no trained share.
    """

    total: Count
    prunable: Count
    nonzero: Count
    stored: Count
    trainable: Trainable
    published: PublishedPart | None = None


class Sparsity(_Part):
    """Fractions of exact zeros in the target set of the exported, reloaded model."""

    overall: Fraction
    min_layer: Fraction
    max_layer: Fraction
    pattern_ok: bool


class Macs(_Part):
    """Multiply-adds of one forward pass of one sequence of `tokens` tokens, head included.

    `effective` leaves out products with zero weights; no hardware promise. `realizable` is what
    the cell's device can leave out: heads and neurons that are sliced away, half of a 2:4 matrix
    where there is a kernel, nothing else. `train` is forward and backward of one update with all
    that the method adds (branches, scores, a teacher), divided by its sequences: 0 where nothing
    was trained, absent where it could not be counted.
    """

    dense: Count
    effective: Count
    head: Count
    realizable: Count | None = None
    train: Count | None = None
    tokens: Count


class EmbeddingBytes(_Part):
    """Of embeddings, tied ones once, and of an LM head: as they lie in memory, and as stored."""

    dense: Count
    stored: Count


class Bytes(_Part):
    """Of all parameters as they lie in memory, and in each file format that fits the model.

    `stored` is the smallest lossless one; of a quantized cell it is the format it is quantized to.
    `embeddings` is what of `dense` and `stored` they take.
    """

    dense: Count
    stored: Count | None = None
    formats: dict[Text, Count] = {}
    embeddings: EmbeddingBytes | None = None


class Cost(_Part):
    """Wall-clock seconds by phase and the peak resident (or device) bytes of the process.

    `dense_s` is the training time of the dense cell that a one-shot method started from.
    """

    train_s: Seconds
    prune_s: Seconds
    eval_s: Seconds
    dense_s: Seconds = 0.0
    peak_bytes: Count


class Speed(_Part):
    """Measured milliseconds of one forward pass of `batch` × `length` tokens.

    `form` is what was measured (`bench.costs.deployed`): dense, sliced or with a sparse kernel.
    `dense_ms_p50` is the dense model's median in the same run, pass by pass in turn; a model in
    dense form is its own dense model.
    """

    hardware: Text
    dtype: Text
    form: Text
    batch: Count
    length: Count
    ms_p50: Seconds
    ms_p95: Seconds
    dense_ms_p50: Seconds


class Data(_Part):
    """Where the rows came from, their sha256, and what a subset lacks."""

    repo: Text
    revision: Text
    fingerprint: Text
    select: Text
    subset: Text = ""


class Model(_Part):
    """Where the weights came from, and the sha256 of what the method was given."""

    source: Text
    revision: Text
    weights_sha256: Text


class Code(_Part):
    """The commit, whether the tree was dirty, and the sha256 of the method's source file."""

    git: Text
    dirty: bool
    method_sha256: Text


class Failure(_Part):
    """Why a cell failed."""

    kind: Outcome
    message: Text
    log_tail: Text = ""


class Record(_Part):
    """One cell's outcome. A done record has all parts, a failed one has `error` instead.

    `report` holds what the method says of its run (`Method.report`).
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

    def to_json(self) -> str:
        """The file's text: floats to six significant digits, no NaN, trailing newline."""
        tree = _six_digits(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str | bytes, where: str) -> Record:
    """Validates a record's JSON.

    Raises:
        BenchError: it is no record; the line names `where` and the first thing wrong.
    """
    try:
        tree = json.loads(text, parse_constant=_refuse)
        return Record.model_validate(tree)
    except ValidationError as error:
        raise BenchError(f"{where}: corrupt record: {first_error(error)}") from None
    except (BenchError, ValueError, RecursionError) as error:
        raise BenchError(f"{where}: corrupt record: {error}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


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
"""Origin of the records that the project made."""


def verified(record: Record) -> bool:
    """Whether the project ran the cell itself; a submission bears its sender as `origin`."""
    return record.origin == LOCAL


def number(record: Record, place: str) -> int | float | None:
    """A number of a record by its place, as `macs.effective`; None where it was not counted."""
    found: Any = record
    for part in place.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]
