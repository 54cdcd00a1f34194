"""The parts of a record; fields in file order, units in the docstrings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.core.errors import Outcome

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=20_000)]


class Part(BaseModel):
    """Frozen, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Versions(Part):
    """The versions of the method and the task; when either changes, the record is stale."""

    method: int
    task: int


class ScoresPart(Part):
    """The scores of a cell: fractions, or perplexities where lower is better.

    `value` is the primary metric `metric`; `all` holds every metric by name. `items` holds one
    outcome for each of the `n` scored items: a text of 0 and 1, or numbers. Their mean is `value`,
    or its logarithm for perplexity. `notes` are footnotes, for example the reason for an absent
    metric. `written` is what the model wrote for the first input. `split` is `select` in a trial of
    settings, and absent in a record of the reported split.
    """

    metric: Text
    higher_is_better: bool
    value: Finite
    all: dict[str, Finite]
    n: Count
    items: str | list[Finite] = ""
    notes: list[Text] | None = None
    written: Text | None = None
    split: Literal["train", "select"] | None = None

    @property
    def unit(self) -> int:
        """Factor of a printed score: 100 for fractions (percent), 1 for perplexity."""
        return 100 if self.higher_is_better else 1


class Trainable(Part):
    """The number of elements that the optimizer held, counted for body and task head apart."""

    body: Count
    head: Count


class PublishedPart(Part):
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


class Params(Part):
    """Numbers of elements in the exported, reloaded model; tied tensors count once.

    `total` counts the whole model, `prunable` the target set, `nonzero` its elements that are not
    zero. `stored` is nonzero + all elements outside the target set (embeddings, biases, norms,
    heads). `matrices` counts all matrices of the blocks, where some are not prunable (routers of
    experts), and is absent elsewhere. `trainable` counts what the optimizer held. `published` is
    absent where the paper prints no trained share.
    """

    total: Count
    prunable: Count
    nonzero: Count
    stored: Count
    matrices: Count | None = None
    trainable: Trainable
    published: PublishedPart | None = None


class Sparsity(Part):
    """Fractions of exact zeros in the exported, reloaded model.

    `overall` is over all matrices of the blocks: the targets, and the routers of experts, which no
    method prunes. `min_layer` and `max_layer` are the extremes of one target.
    `pattern_ok` tells whether every target that could be pruned holds the cell's pattern. `before`
    is the fraction that the method was given; it is absent where there was no zero.
    """

    overall: Fraction
    min_layer: Fraction
    max_layer: Fraction
    pattern_ok: bool
    before: Fraction | None = None


class Macs(Part):
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


class EmbeddingBytes(Part):
    """The bytes of embeddings and of an LM head, in memory and as stored; tied ones count once."""

    dense: Count
    stored: Count


class Bytes(Part):
    """The bytes of all parameters in memory (`dense`), and in each file format that fits them.

    `stored` is the size in the smallest lossless format; for a quantized cell, in its own format.
    `embeddings` is the part of `dense` and `stored` that embeddings take.
    """

    dense: Count
    stored: Count | None = None
    formats: dict[Text, Count] = {}
    embeddings: EmbeddingBytes | None = None


class Cost(Part):
    """Wall-clock seconds by phase, and the peak memory of the process in bytes.

    `prune_s` includes attaching and finishing. `dense_s` is the training time of the dense cell
    that a one-shot method started from. `peak_bytes` is resident memory, or allocation on a GPU.
    """

    train_s: Seconds
    prune_s: Seconds
    eval_s: Seconds
    dense_s: Seconds = 0.0
    peak_bytes: Count


class Speed(Part):
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


class Data(Part):
    """The source of the task's rows, their sha256, and what a subset lacks."""

    repo: Text
    revision: Text
    fingerprint: Text
    select: Text
    subset: Text = ""


class Model(Part):
    """The source of the weights, and the sha256 of the weights that the method was given."""

    source: Text
    revision: Text
    weights_sha256: Text


class Code(Part):
    """The git commit, whether the tree was dirty, and the sha256 of the method's source file."""

    git: Text
    dirty: bool
    method_sha256: Text


class Failure(Part):
    """The reason why a cell failed, and the end of its log."""

    kind: Outcome
    message: Text
    log_tail: Text = ""
