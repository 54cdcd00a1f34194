"""What all tasks share that write a text for an input and compare it with human ones.

The protocol is that of LoRA's GPT-2 scripts (arXiv 2106.09685), which PST (arXiv 2205.11005) and
DSEE use and which go back to Prefix-Tuning (arXiv 2101.00190). A training row is

    input ids · bos · ids of " " + text · eos        (bos is eos where a tokenizer has no other)

and only text and eos are learnt, with label smoothing 0.1 (`budget.smoothing`). A row that is too
long loses the start of its input. At test time the model writes one text for every distinct input,
by greedy or beam search (`budget.beams`). It is scored against all the input's references.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.api import Budget, Scores, Split
from bench.sources import token_windows
from tasks.metrics import meteor
from tasks.shared.base import Base, Splits, position

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.metrics.text import TextMetric

NEW_TOKENS = 64
"""Tokens a text may have: the scripts' `--eval_len`."""
IGNORED = -100
"""Label of the tokens that are not learnt."""
SHOWN = 5
"""Texts that the cell's log shows beside a reference."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Items:
    """Distinct inputs, each with its texts and the part of the test set it belongs to, or ''."""

    inputs: list[str]
    texts: list[list[str]]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Iterable[int]) -> Items:
        """Returns the items at `indices`."""
        chosen = list(indices)
        return Items(
            [self.inputs[i] for i in chosen],
            [self.texts[i] for i in chosen],
            [self.groups[i] for i in chosen],
        )

    def split_keys(self) -> list[str]:
        """Returns the inputs, so that all texts of an input stay in one split."""
        return self.inputs

    def pairs(self) -> list[tuple[str, str]]:
        """Returns (input, text) for every text."""
        return [(i, t) for i, texts in zip(self.inputs, self.texts, strict=True) for t in texts]


class DataToText(Base[Items]):
    """A task of inputs with human texts; a subclass defines `_load`, `metrics` and `budgets`.

    The dense model is the pretrained one, fine-tuned on `train`.

    Attributes:
        length_penalty: of the beam search.
    """

    version = 2
    metric = "bleu"
    higher_is_better = True
    head = "causal-lm"
    twin = "tiny/nlg"
    labels = 0
    trains = True
    finetunes = True
    length_penalty = 1.0

    @abstractmethod
    def _load(self) -> Splits[Items]:
        """Returns the splits; called once."""

    @abstractmethod
    def metrics(self) -> Sequence[TextMetric]:
        """Returns what is reported; BLEU is among them."""

    def _rows(self) -> Iterator[dict[str, object]]:
        data = self.data
        return (
            {"input": input_, "text": text}
            for part in (data.train, data.select, data.test)
            for input_, text in part.pairs()
        )

    def prepare(self) -> None:
        """Fetches the rows, and METEOR where it can be run.

        Raises:
            BenchError: kind `offline` when no source has the rows.
        """
        super().prepare()
        meteor.fetch()

    def train(self, tok: PreTrainedTokenizerBase) -> Dataset:
        """Returns a row for every text, with `length` and `labels`, −100 except on text and eos."""
        from datasets import Dataset  # here, so that `plan` starts without it

        return Dataset.from_list(self._encode(self.data.train.pairs(), tok, tok.model_max_length))

    def documents(self) -> list[str]:
        """Returns train's inputs and texts in turn, as training rows hold them, for pretraining."""
        return [part for i, t in self.data.train.pairs() for part in (i, f" {t}")]

    def collator(self, tok: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Returns a function that pads a batch on the right, whatever side the tokenizer pads."""

        def collate(rows: list[Any]) -> dict[str, Tensor]:
            def padded(sequences: Iterable[list[int]], fill: float) -> Tensor:
                return pad_sequence([torch.tensor(s) for s in sequences], True, fill)

            return {
                "input_ids": padded((row["input_ids"] for row in rows), tok.pad_token_id),
                "labels": padded((row["labels"] for row in rows), IGNORED),
                "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
            }

        return collate

    def calibration(
        self, tok: PreTrainedTokenizerBase, n: int, length: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """Returns `n` training rows drawn by `seed`, input and text, in batches of 8."""
        pairs = self.data.train.pairs()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(pairs), generator=generator)[:n].tolist()
        rows = self._encode([pairs[i] for i in chosen], tok, length)
        return token_windows.batches([torch.tensor(row["input_ids"]) for row in rows])

    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Scores one split: `n` counts the inputs, `items` holds BLEU's jackknife values.

        `budget.items` limits the inputs to those whose hashes come first.

        Raises:
            BenchError: kind `nan` when an output is not a number.
        """
        budget = budget or self.budgets["default"]
        every = self.data[split]
        items = sample(every, budget.items)
        outputs = self.write(model, tok, device, items.inputs, budget.beams or 1)
        notes: list[str] = []
        if len(items) < len(every):
            notes.append(f"scored on {len(items)} of {len(every)} inputs")
        values = self._measured(outputs, items, notes)
        shown = zip(items.inputs, outputs, items.texts, strict=True)
        for input_, output, texts in islice(shown, SHOWN):
            logger.info("input:     %s\nwritten:   %s\nreference: %s\n", input_, output, texts[0])
        primary = next(metric for metric in self.metrics() if metric.key == self.metric)
        return Scores(
            values=values,
            n=len(items),
            items=primary.items(outputs, items.texts),
            notes=tuple(dict.fromkeys(notes)),
            written=outputs[0] if outputs else "",
        )

    def write(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        inputs: list[str],
        beams: int,
    ) -> list[str]:
        """Writes a text for each input; the two take at most `tok.model_max_length` tokens."""
        from tasks.shared.generation import Decoding, generate

        length = tok.model_max_length
        new = min(NEW_TOKENS, length // 2)
        prompts = [ids[new - length :] for ids in _prompts(inputs, tok)]
        how = Decoding(beams, new, self.length_penalty)
        return generate(model, tok, device, prompts, how)

    def _measured(self, outputs: list[str], items: Items, notes: list[str]) -> dict[str, float]:
        """Scores all items and, as `<score>_<group>`, the items of each group."""
        values = self._scored(outputs, items.texts, notes)
        for group in sorted({g for g in items.groups if g}):
            inside = [i for i, g in enumerate(items.groups) if g == group]
            part = self._scored(
                [outputs[i] for i in inside], [items.texts[i] for i in inside], notes
            )
            values |= {f"{name}_{group}": value for name, value in part.items()}
        return values

    def _scored(
        self, outputs: list[str], texts: list[list[str]], notes: list[str]
    ) -> dict[str, float]:
        values = {}
        for metric in self.metrics():
            try:
                values[metric.key] = metric.corpus(outputs, texts)
            except meteor.Missing as reason:
                notes.append(str(reason))
        return values

    def _encode(
        self, pairs: list[tuple[str, str]], tok: PreTrainedTokenizerBase, length: int
    ) -> list[dict[str, Any]]:
        prompts = _prompts([input_ for input_, _ in pairs], tok)
        # The blank in front is LoRA's: a text begins as a word inside a sentence does.
        texts = tok([" " + text for _, text in pairs], add_special_tokens=False)["input_ids"]
        rows = []
        for prompt, text in zip(prompts, texts, strict=True):
            # At least one token of the prompt stays: the first label is predicted from it.
            learnt = [*text, tok.eos_token_id][: length - 1]
            kept = prompt[max(0, len(prompt) + len(learnt) - length) :]
            rows.append(
                {
                    "input_ids": kept + learnt,
                    "labels": [IGNORED] * len(kept) + learnt,
                    "length": len(kept) + len(learnt),
                }
            )
        return rows


def sample(items: Items, n: int | None) -> Items:
    """Returns the `n` items whose inputs' hashes come first, in their order; all for None."""
    if n is None or n >= len(items):
        return items
    ranked = sorted(range(len(items)), key=lambda i: position(items.inputs[i]))
    return items.take(sorted(ranked[:n]))


def group(pairs: Iterable[tuple[str, str]]) -> Items:
    """Groups (input, text) pairs by input, in the order of first appearance."""
    found: dict[str, list[str]] = {}
    for input_, text in pairs:
        found.setdefault(input_, []).append(text)
    return Items(list(found), list(found.values()), [""] * len(found))


def _prompts(inputs: list[str], tok: PreTrainedTokenizerBase) -> list[list[int]]:
    """Returns the token ids of the inputs, each with the separator after it."""
    between = tok.eos_token_id if tok.bos_token_id is None else tok.bos_token_id
    distinct = list(dict.fromkeys(inputs))  # a training input stands in a row for each of its texts
    encoded = tok(distinct, add_special_tokens=False)["input_ids"]
    ids = dict(zip(distinct, encoded, strict=True))
    return [[*ids[input_], between] for input_ in inputs]
