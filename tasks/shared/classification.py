"""What all tasks with a classification (or regression) head share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from bench.api import BenchError, Budget, Scores
from tasks.metrics.classification import score
from tasks.shared.base import Base, position

EVAL_BATCH = 64


@dataclass(frozen=True)
class Rows:
    """Texts, or pairs of texts, with labels."""

    first: list[str]
    second: list[str] | None
    labels: list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: list[int]) -> Rows:
        """The rows at `indices`."""
        second = None if self.second is None else [self.second[i] for i in indices]
        return Rows([self.first[i] for i in indices], second, [self.labels[i] for i in indices])

    def texts(self) -> list[str]:
        """One string a row, for hashing."""
        if self.second is None:
            return self.first
        return [f"{a}\0{b}" for a, b in zip(self.first, self.second, strict=True)]


@dataclass(frozen=True)
class Data:
    """The three splits and where they came from, without the fingerprint."""

    train: Rows
    select: Rows
    test: Rows
    repo: str
    revision: str
    select_rule: str
    subset: str = ""


class Classification(Base):
    """A task whose rows `_load` gives; everything else is common."""

    name: str
    version = 1
    metric = "accuracy"
    higher_is_better = True
    head = "classification"
    labels = 2
    trains = True
    finetunes = True
    budgets = {"default": Budget(steps=300, batch=32, length=64)}

    @abstractmethod
    def _load(self) -> Data:
        """The splits; called once."""

    def _rows(self):
        data = self.data
        return (
            {"text": text, "label": label}
            for split in (data.train, data.select, data.test)
            for text, label in zip(split.texts(), split.labels, strict=True)
        )

    def train(self, tok) -> Dataset:
        """Tokenized training rows with `labels` and `length`."""
        return self._encode(self.data.train, tok)

    def collator(self, tok):
        """Pads a batch to its longest row."""
        return DataCollatorWithPadding(tok)

    def calibration(self, tok, n: int, length: int, seed: int) -> list[dict[str, torch.Tensor]]:
        """`n` training rows drawn by `seed`, in batches of 32, longest row first."""
        rows = self.data.train
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[:n].tolist()
        encoded = self._encode(rows.take(chosen), tok, length).remove_columns(["labels"])
        return list(self._batches(encoded, tok, 32))

    @torch.no_grad()
    def evaluate(self, model, tok, device, split: str = "test", budget: Budget | None = None):
        """Scores one split; items are 1 where the prediction is right, or the predictions."""
        rows: Rows = getattr(self.data, split)
        encoded = self._encode(rows, tok)
        order = sorted(range(len(rows)), key=lambda i: -encoded[i]["length"])
        outputs = torch.empty(len(rows), self.labels)
        start = 0
        for batch in self._batches(encoded.select(order).remove_columns(["labels"]), tok):
            logits = model(**{k: v.to(device) for k, v in batch.items()}).logits.float().cpu()
            outputs[order[start : start + len(logits)]] = logits
            start += len(logits)
        if not outputs.isfinite().all():
            raise BenchError("the model's outputs are not finite", "nan")
        if self.labels == 1:
            predicted, gold = outputs[:, 0].tolist(), rows.labels
            items: str | list[float] = predicted
        else:
            predicted, gold = outputs.argmax(1).tolist(), [int(v) for v in rows.labels]
            items = "".join("01"[p == g] for p, g in zip(predicted, gold, strict=True))
        values = score(self.metric, predicted, gold)
        if self.labels > 1:
            values["majority"] = max(gold.count(c) for c in set(gold)) / len(gold)
        return Scores(values=values, n=len(rows), items=items)

    def _encode(self, rows: Rows, tok, length: int | None = None) -> Dataset:
        texts = (rows.first,) if rows.second is None else (rows.first, rows.second)
        columns = dict(tok(*texts, truncation=True, max_length=length or tok.model_max_length))
        as_label = float if self.labels == 1 else int
        columns["labels"] = [as_label(v) for v in rows.labels]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        return Dataset.from_dict(columns)

    def _batches(self, encoded: Dataset, tok, size: int = EVAL_BATCH):
        collate = self.collator(tok)
        encoded = encoded.remove_columns(["length"])
        for start in range(0, len(encoded), size):
            rows = encoded[start : start + size]
            keys = list(rows)
            yield dict(
                collate(
                    [dict(zip(keys, row, strict=True)) for row in zip(*rows.values(), strict=True)]
                )
            )


def carve(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """(train, select): rows whose text's hash falls below `fraction` are set apart.

    By text, so that a duplicate is on one side only.
    """
    positions = [position(text) for text in rows.texts()]
    select = [i for i, p in enumerate(positions) if p < fraction]
    train = [i for i, p in enumerate(positions) if p >= fraction]
    return rows.take(train), rows.take(select)
