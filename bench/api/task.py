"""A task: data, a head and a metric. `tasks/README.md` says how to add one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench.core.cell import Budget

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Scores:
    """What a task measured on its reported split.

    Attributes:
        values: every metric by name; the task's `metric` is one of them. Fractions, not percent.
        n: items scored.
        items: one outcome an item for paired tests: a string of 0/1, or a list of numbers. Their
            mean is the score (of perplexity: its logarithm). A metric that is no mean of items has
            jackknife values (`tasks/metrics/jackknife.py`).
        notes: footnotes, as why a score is absent.
        written: what the model wrote for the first input, where it writes texts.
    """

    values: Mapping[str, float]
    n: int
    items: str | list[float] = ""
    notes: tuple[str, ...] = ()
    written: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows or weights came from, as it stands in the record.

    Attributes:
        repo: repository id on the hub, or what was generated.
        revision: its pinned revision, or the pinned archive.
        fingerprint: sha256 over the rows (or the weights) as used.
        select: how the select slice was cut from train.
        subset: what is missing against the official data, empty when complete.
    """

    repo: str
    revision: str
    fingerprint: str
    select: str = ""
    subset: str = ""


Split = Literal["train", "select", "test"]


class Task(Protocol):
    """Data, a head and a metric.

    Attributes:
        version: raised when the task's numbers move; tasks are superseded, never edited.
        head: which model class it needs.
        labels: number of classes (1: regression); 0 without a classification head.
        trains: whether it comes with training data; without, models are scored as they are.
        finetunes: whether dense means fine-tuned on that data. Otherwise the pretrained model is
            dense as it is, one-shot methods start from it, and training methods retrain it.
        limit: items that `budget.items` may ask for at most; 0 for a task that scores all always.
        metric: name of the primary metric in `Scores.values`.
        examples: training examples of the official data, from which a suite's epochs become steps;
            0 where an epoch means nothing.
        twin: name of the synthetic task of the same kind, on which `--smoke` tries the task's
            cells; empty: the head decides.
    """

    name: str
    version: int
    metric: str
    higher_is_better: bool
    head: Literal["classification", "causal-lm"]
    labels: int
    trains: bool
    finetunes: bool
    limit: int
    budgets: Mapping[str, Budget]
    examples: int = 0
    twin: str = ""

    def prepare(self) -> None:
        """Fetches what is missing; raises BenchError(kind="offline") when it cannot."""

    def source(self) -> Source:
        """Returns where the rows came from."""

    def train(self, tok: PreTrainedTokenizerBase) -> Dataset:
        """Returns tokenized rows, cut to `tok.model_max_length`, with a column `length`."""

    def collator(self, tok: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Returns a function from rows to a batch, padded to its longest row."""

    def calibration(
        self, tok: PreTrainedTokenizerBase, n: int, length: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """Returns `n` training sequences of at most `length` tokens, in batches."""

    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Scores the reported split, once a cell; `select` (a slice of train) is for tuning.

        `budget` says what scoring may spend (beams, items); None stands for the default one.
        """
