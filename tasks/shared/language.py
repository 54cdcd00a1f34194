"""What all tasks share that score a causal language model by its perplexity on running text.

The protocol is the one of SparseGPT (arXiv 2301.00774), Wanda (arXiv 2306.11695) and AST (arXiv
2407.20584). A split's rows are joined by two newlines and tokenized once. The stream is cut into
windows of the budget's length that do not overlap, and the incomplete last window is dropped.
Within a window, every token but the first is predicted from those before it. Perplexity falls as
the length grows, so the record and the table name the length.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.api import BenchError, Budget, Scores, Split
from bench.sources import token_windows
from tasks.shared.base import Base, Splits

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVAL_TOKENS = 2048
"""Tokens of a batch. Its logits take tokens · vocabulary · 4 bytes: 400 MB for 49k words."""


class Language(Base[list[str]]):
    """A task of running text; a subclass defines `_load` and the budgets.

    The pretrained model is the dense one. One-shot methods start from it, and training methods
    retrain it on the train text. Calibration sequences come from the train text too.
    """

    version = 2  # scored in bf16 where the device multiplies it
    metric = "perplexity"
    higher_is_better = False
    head = "causal-lm"
    labels = 0
    trains = True
    finetunes = False
    limit = 100_000  # windows; a text that has fewer is scored whole
    budgets: Mapping[str, Budget] = {"default": Budget(steps=200, batch=2, length=512, calib=32)}

    @abstractmethod
    def _load(self) -> Splits[list[str]]:
        """Returns the rows of each split; called once."""

    def _rows(self) -> Iterator[dict[str, object]]:
        data = self.data
        return ({"text": row} for part in (data.train, data.select, data.test) for row in part)

    def documents(self) -> list[str]:
        """Returns the train rows that are not blank, for pretraining."""
        return [row.strip() for row in self.data.train if row.strip()]

    def train(self, tok: PreTrainedTokenizerBase) -> Dataset:
        """Returns windows of `tok.model_max_length` tokens with `labels` (the ids) and `length`."""
        rows = token_windows.cut(self.ids("train", tok), tok.model_max_length, self._what("train"))
        ids = rows.tolist()
        from datasets import Dataset  # here, so that `plan` starts without it

        return Dataset.from_dict(
            {"input_ids": ids, "labels": ids, "length": [rows.shape[1]] * len(ids)}
        )

    def collator(self, tok: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Returns a function that stacks windows; the model shifts the labels itself."""
        return lambda rows: {
            key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")
        }

    def calibration(
        self, tok: PreTrainedTokenizerBase, n: int, length: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """Draws `n` windows by `seed` that start anywhere in the train text, in batches of 8."""
        drawn = token_windows.draw(self.ids("train", tok), n, length, seed, self._what("train"))
        return token_windows.batches(list(drawn))

    @torch.no_grad()
    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Measures the perplexity of one split, in windows of `tok.model_max_length` tokens.

        `items` are the windows' mean negative log-likelihoods in nats. `bits_per_byte` spreads
        the likelihood over the text's bytes, so that tokenizers can be compared.
        `budget.items` limits the windows to as many that are spread evenly over the text.

        Raises:
            BenchError: kind `nan` when the perplexity is not finite.
        """
        ids = self.ids(split, tok)
        length = tok.model_max_length
        every = token_windows.cut(ids, length, self._what(split))
        windows = token_windows.spread(every, budget.items if budget else None)
        means = []
        for batch in windows.split(max(1, EVAL_TOKENS // length)):
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
        fewer = len(windows) < len(every)
        notes = (f"scored on {len(windows)} of {len(every)} windows",) if fewer else ()
        return Scores(values=values, n=len(items), items=items.tolist(), notes=notes)

    def text(self, split: Split) -> str:
        """Returns a split as one text."""
        return "\n\n".join(self.data[split])

    def ids(self, split: Split, tok: PreTrainedTokenizerBase) -> Tensor:
        """Returns a split's token ids, (tokens,), with the special tokens the tokenizer adds."""
        return torch.tensor(tok(self.text(split), verbose=False)["input_ids"])

    def _what(self, split: str) -> str:
        return f"{self.name}: the {split} text"
