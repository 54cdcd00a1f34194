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
    """The versions of the method and the task; when either changes, the record is stale."""

    method: int
    task: int


class ScoresPart(_Part):
    """The scores of a cell: fractions, or perplexities where lower is better.

    `value` is the primary metric `metric`; `all` holds every metric by name. `items` holds one
    outcome for each of the `n` scored items: a text of 0 and 1, or numbers. `notes` are footnotes,
    for example the reason for an absent metric.
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
        """Factor of a printed score: 100 for fractions (percent), 1 for perplexity."""
        return 100 if self.higher_is_better else 1


class Trainable(_Part):
    """The number of elements that the optimizer held, counted for body and task head apart."""

    body: Count
    head: Count


class PublishedPart(_Part):
    """The trained share that the method's paper prints, and our share of the same denominator.

    `share` (printed) and `ours` are fractions. `of` names the denominator, which has `denominator`
    elements in this model. `head` tells whether the numerator includes the task's head. `setting`
    is the paper's.
    """

    share: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ours: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    of: Text
    denominator: Count
    head: bool
    setting: Text


class Params(_Part):
    """Numbers of elements in the exported, reloaded model; tied tensors count once.

    `total` counts the whole model, `prunable` the target set, `nonzero` its elements that are not
    zero. `stored` is nonzero + all elements outside the target set (embeddings, biases, norms,
    heads). `trainable` counts what the optimizer held. `published` is absent where the paper prints
    no trained share.
    """

    total: Count
    prunable: Count
    nonzero: Count
    stored: Count
    trainable: Trainable
    published: PublishedPart | None = None


class Sparsity(_Part):
    """Fractions of exact zeros in the target set of the exported, reloaded model.

    `overall` is that of all targets, `min_layer` and `max_layer` are the extremes of one target.
    `pattern_ok` tells whether every target holds the cell's pattern.
    """

    overall: Fraction
    min_layer: Fraction
    max_layer: Fraction
    pattern_ok: bool


class Macs(_Part):
    """Multiply-adds of one forward pass of one sequence of `tokens` tokens, head included.

    `dense` counts zeros, too; `head` is the head's part of it. `effective` leaves out products with
    zero weights and promises no speed. `realizable` leaves out only what the cell's device can
    skip: sliced heads and neurons, and half of a 2:4 matrix where there is a kernel. `train` counts
    forward and backward of one update with all that the method adds (branches, scores, a teacher),
    divided by its sequences. It is 0 where nothing was trained, and absent where it could not be
    counted.
    """

    dense: Count
    effective: Count
    head: Count
    realizable: Count | None = None
    train: Count | None = None
    tokens: Count


class EmbeddingBytes(_Part):
    """The bytes of embeddings and of an LM head, in memory and as stored; tied ones count once."""

    dense: Count
    stored: Count


class Bytes(_Part):
    """The bytes of all parameters in memory (`dense`), and in each file format that fits them.

    `stored` is the size in the smallest lossless format; for a quantized cell, in its own format.
    `embeddings` is the part of `dense` and `stored` that embeddings take.
    """

    dense: Count
    stored: Count | None = None
    formats: dict[Text, Count] = {}
    embeddings: EmbeddingBytes | None = None


class Cost(_Part):
    """Wall-clock seconds by phase, and the peak memory of the process in bytes.

    `prune_s` includes attaching and finishing. `dense_s` is the training time of the dense cell
    that a one-shot method started from. `peak_bytes` is resident memory, or allocation on a GPU.
    """

    train_s: Seconds
    prune_s: Seconds
    eval_s: Seconds
    dense_s: Seconds = 0.0
    peak_bytes: Count


class Speed(_Part):
    """Measured milliseconds of one forward pass of `batch` sequences of `length` tokens.

    `form` names the measured form (`bench.costs.deployed`): dense, sliced or with a sparse kernel.
    `ms_p50` and `ms_p95` are the median and the 95th percentile. `dense_ms_p50` is the median of
    the dense model in the same run, where both take turns pass by pass. A model in dense form is
    its own dense model.
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
    """The source of the task's rows, their sha256, and what a subset lacks."""

    repo: Text
    revision: Text
    fingerprint: Text
    select: Text
    subset: Text = ""


class Model(_Part):
    """The source of the weights, and the sha256 of the weights that the method was given."""

    source: Text
    revision: Text
    weights_sha256: Text


class Code(_Part):
    """The git commit, whether the tree was dirty, and the sha256 of the method's source file."""

    git: Text
    dirty: bool
    method_sha256: Text


class Failure(_Part):
    """The reason why a cell failed, and the end of its log."""

    kind: Outcome
    message: Text
    log_tail: Text = ""


class Record(_Part):
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
    except (BenchError, ValueError, RecursionError) as error:
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
"""The origin of records that the project made itself."""


def verified(record: Record) -> bool:
    """Tells whether the project ran the cell itself; a submission's `origin` is its sender."""
    return record.origin == LOCAL


def number(record: Record, path: str) -> int | float | None:
    """Returns a number of a record by its path, as `macs.effective`; None where it is absent."""
    value: Any = record
    for name in path.split("."):
        value = getattr(value, name)
    return value  # type: ignore[no-any-return]
