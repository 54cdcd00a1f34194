"""What all tasks with a classification (or regression) head share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.api import BenchError, Budget, Scores, Split
from tasks.shared import checks
from tasks.shared.base import Base, Splits

EVAL_BATCH = 64
"""Rows of a batch at evaluation."""
CALIBRATION_BATCH = 32
"""Rows of a batch at calibration."""

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """Texts, or pairs of texts, with labels: class numbers, or values for a regression."""

    first: list[str]
    second: list[str] | None
    labels: list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> Rows:
        """Returns the rows at `indices`."""
        chosen = list(indices)
        second = None if self.second is None else [self.second[i] for i in chosen]
        return Rows([self.first[i] for i in chosen], second, [self.labels[i] for i in chosen])

    def split_keys(self) -> list[str]:
        """Returns one string a row, for hashing: the text, or the two texts with a zero byte."""
        if self.second is None:
            return self.first
        return [f"{a}\0{b}" for a, b in zip(self.first, self.second, strict=True)]


class Classification(Base[Rows]):
    """A task of labelled rows; a subclass defines `_load` and, where they differ, the attributes.

    The dense model is the pretrained one with a new head, fine-tuned on `train`.
    """

    version = 1
    metric = "accuracy"
    higher_is_better = True
    head = "classification"
    labels = 2
    trains = True
    finetunes = True
    budgets: Mapping[str, Budget] = {"default": Budget(steps=300, batch=32, length=64)}

    @abstractmethod
    def _load(self) -> Splits[Rows]:
        """Returns the splits; called once."""

    def _check(self, splits: Splits[Rows]) -> None:
        for split in ("train", "select", "test"):
            rows, where = splits[split], f"{self.name} {split}"
            checks.labels(where, "label", rows.labels, self.labels)
            for column in (rows.first, rows.second or ()):
                checks.texts(where, "text", column)
        if not len(splits.test):
            raise BenchError(f"{self.name} test: there are no rows")

    def _rows(self) -> Iterator[dict[str, object]]:
        data = self.data
        return (
            {"text": text, "label": label}
            for split in (data.train, data.select, data.test)
            for text, label in zip(split.split_keys(), split.labels, strict=True)
        )

    def train(self, tok: PreTrainedTokenizerBase) -> Dataset:
        """Returns the tokenized training rows with `labels` and `length`."""
        return self._encode(self.data.train, tok, tok.model_max_length)

    def collator(self, tok: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Returns a function that pads a batch to its longest row."""
        from transformers import DataCollatorWithPadding

        collate: Callable[[list[Any]], dict[str, Tensor]] = DataCollatorWithPadding(tok)
        return collate

    def calibration(
        self, tok: PreTrainedTokenizerBase, n: int, length: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """Returns `n` training rows drawn by `seed`, cut to `length` tokens, in batches of 32."""
        rows = self.data.train
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[:n].tolist()
        encoded = self._encode(rows.take(chosen), tok, length)
        return list(self._batches(encoded, tok, CALIBRATION_BATCH))

    @torch.no_grad()
    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Scores one split; all rows, whatever the budget.

        `items` holds 1 where the predicted class is right, or jackknife values if `metric` is not
        accuracy.

        Raises:
            BenchError: kind `nan` when an output is not finite.
        """
        from tasks.metrics.classification import (  # loads scikit-learn
            classification_items,
            classification_scores,
        )

        rows = self.data[split]
        encoded = self._encode(rows, tok, tok.model_max_length)
        lengths = list(encoded["length"])
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])
        outputs = torch.empty(len(rows), self.labels)
        start = 0
        for batch in self._batches(encoded.select(order), tok, EVAL_BATCH):
            logits = model(**{k: v.to(device) for k, v in batch.items()}).logits.float().cpu()
            outputs[order[start : start + len(logits)]] = logits
            start += len(logits)
        if not outputs.isfinite().all():
            raise BenchError("the model's outputs are not finite", "nan")
        if self.labels == 1:
            predicted, gold = outputs[:, 0].tolist(), rows.labels
        else:
            predicted, gold = outputs.argmax(1).tolist(), [int(label) for label in rows.labels]
        scores = classification_scores(self.metric, predicted, gold)
        if self.labels > 1:
            scores["majority"] = max(gold.count(c) for c in set(gold)) / len(gold)
        items = classification_items(self.metric, predicted, gold)
        return Scores(values=scores, n=len(rows), items=items)

    def _encode(self, rows: Rows, tok: PreTrainedTokenizerBase, length: int) -> Dataset:
        texts = (rows.first,) if rows.second is None else (rows.first, rows.second)
        columns = dict(tok(*texts, truncation=True, max_length=length))
        as_label = float if self.labels == 1 else int
        columns["labels"] = [as_label(v) for v in rows.labels]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        from datasets import Dataset

        return Dataset.from_dict(columns)

    def _batches(
        self, encoded: Dataset, tok: PreTrainedTokenizerBase, size: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yields what the model takes, without labels, `size` rows at a time."""
        collate = self.collator(tok)
        inputs = encoded.remove_columns(["labels", "length"])
        for start in range(0, len(inputs), size):
            # A slice is a dict of columns, which reads faster than row by row.
            columns = inputs[start : start + size]
            rows = zip(*columns.values(), strict=True)
            yield dict(collate([dict(zip(columns, row, strict=True)) for row in rows]))
