"""What all tasks share that score a causal language model by its perplexity on running text.

The protocol is the one of Wanda, SparseGPT and AST (METHODS.md §5): a split's rows are joined by
two newlines and tokenized once, the stream is cut into windows of the budget's length that do not
overlap, the ragged rest is dropped, and within a window every token but the first is predicted
from those before it. Perplexity falls with the length, so the record and the table name it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from bench.api import BenchError, Budget, Scores
from bench.sources import token_windows
from tasks.shared.base import Base

# Logits take tokens · vocabulary · 4 bytes: 400 MB for 49k words.
EVAL_TOKENS = 2048


@dataclass(frozen=True)
class Texts:
    """The rows of the three splits and where they came from, without the fingerprint."""

    train: list[str]
    select: list[str]
    test: list[str]
    repo: str
    revision: str
    select_rule: str
    subset: str = ""


class Language(Base):
    """A task whose texts `_load` gives; everything else is common.

    The pretrained model is the dense one. One-shot methods start from it, training methods retrain
    it on the train text; calibration sequences come from the train text too.
    """

    name: str
    version = 2  # scored in bf16 where the device multiplies it
    metric = "perplexity"
    higher_is_better = False
    head = "causal-lm"
    labels = 0
    trains = True
    finetunes = False
    budgets = {"default": Budget(steps=200, batch=2, length=512, calib=32)}

    @abstractmethod
    def _load(self) -> Texts:
        """The splits; called once."""

    def _rows(self):
        data = self.data
        return ({"text": row} for part in (data.train, data.select, data.test) for row in part)

    def documents(self) -> list[str]:
        """The train rows that are not blank, for pretraining."""
        return [row.strip() for row in self.data.train if row.strip()]

    def train(self, tok) -> Dataset:
        """Packed windows of `tok.model_max_length` tokens with `labels` (the ids) and `length`."""
        rows = token_windows.cut(self.ids("train", tok), tok.model_max_length, self._what("train"))
        ids = rows.tolist()
        return Dataset.from_dict(
            {"input_ids": ids, "labels": ids, "length": [rows.shape[1]] * len(ids)}
        )

    def collator(self, tok):
        """Stacks windows; all are equally long, and the model shifts the labels itself."""
        return lambda rows: {
            key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")
        }

    def calibration(self, tok, n: int, length: int, seed: int) -> list[dict[str, torch.Tensor]]:
        """`n` windows that start anywhere in the train text, drawn by `seed`, in batches of 8."""
        drawn = token_windows.draw(self.ids("train", tok), n, length, seed, self._what("train"))
        return token_windows.batches(list(drawn))

    @torch.no_grad()
    def evaluate(
        self, model, tok, device, split: str = "test", budget: Budget | None = None
    ) -> Scores:
        """Perplexity of one split; items are the windows' mean negative log-likelihoods (nats).

        `bits_per_byte` takes the text's mean tokens a byte, so it compares tokenizers.
        """
        ids = self.ids(split, tok)
        length = tok.model_max_length
        means = []
        for batch in token_windows.cut(ids, length, self._what(split)).split(
            max(1, EVAL_TOKENS // length)
        ):
            batch = batch.to(device)
            logits = model(input_ids=batch, use_cache=False).logits
            # Window by window: the float32 log-softmax is as large as the logits.
            means += [
                cross_entropy(row[:-1].float(), gold[1:])
                for row, gold in zip(logits, batch, strict=True)
            ]
        items = torch.stack(means).double().cpu()
        nll = items.mean()
        if not nll.exp().isfinite():
            raise BenchError("the model's outputs are not finite", "nan")
        size = len(self.text(split).encode())
        values = {
            "perplexity": float(nll.exp()),
            "nll": float(nll),
            "bits_per_byte": float(nll) / math.log(2) * len(ids) / size,
        }
        return Scores(values=values, n=len(items), items=items.tolist())

    def text(self, split: str) -> str:
        """A split as one text."""
        return "\n\n".join(getattr(self.data, split))

    def ids(self, split: str, tok) -> torch.Tensor:
        """A split's token ids: (tokens,), with what special tokens the tokenizer adds to a text."""
        return torch.tensor(tok(self.text(split), verbose=False)["input_ids"])

    def _what(self, split: str) -> str:
        return f"{self.name}: the {split} text"
