"""What all tasks share that write a text for an input and compare it with human ones.

The protocol is that of LoRA's GPT-2 scripts (arXiv 2106.09685), which PST (arXiv 2205.11005) and
DSEE use and which go back to Prefix-Tuning (arXiv 2101.00190). A training row is

    input ids · bos · ids of " " + text · eos        (bos is eos where a tokenizer has no other)

and only text and eos are learnt, with label smoothing 0.1 (`budget.smoothing`). A row that is too
long loses the start of its input. At test time every distinct input gets one text, by greedy or
beam search (`budget.beams`), which is scored against all the input's references.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset

from bench.api import Budget, Scores
from bench.sources import token_windows
from tasks.metrics import meteor
from tasks.metrics.text import Bleu, TextMetric
from tasks.shared.base import Base, position
from tasks.shared.generation import Decoding, generate

# The scripts' `--eval_len`: tokens a text may have.
NEW_TOKENS = 64
IGNORED = -100
# Texts that the cell's log shows beside a reference.
SHOWN = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Items:
    """Distinct inputs, each with its texts; `groups` names a part of the test set, or is empty."""

    inputs: list[str]
    texts: list[list[str]]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Iterable[int]) -> Items:
        """The items at `indices`."""
        chosen = list(indices)
        parts = (self.inputs, self.texts, self.groups)
        return Items(*([part[i] for i in chosen] for part in parts))

    def pairs(self) -> list[tuple[str, str]]:
        """(input, text), one for every text."""
        return [(i, t) for i, texts in zip(self.inputs, self.texts, strict=True) for t in texts]


@dataclass(frozen=True)
class Splits:
    """The three splits and where they came from, without the fingerprint."""

    train: Items
    select: Items
    test: Items
    repo: str
    revision: str
    select_rule: str
    subset: str = ""


class DataToText(Base):
    """A task whose items `_load` gives; everything else is common.

    Attributes:
        length_penalty: of the beam search.
    """

    version = 1
    metric = "bleu"
    higher_is_better = True
    head = "causal-lm"
    labels = 0
    trains = True
    finetunes = True
    length_penalty = 1.0
    budgets: Mapping[str, Budget]

    @abstractmethod
    def _load(self) -> Splits:
        """The splits; called once."""

    @abstractmethod
    def metrics(self) -> Sequence[TextMetric]:
        """What is reported; BLEU is among them."""

    def _rows(self):
        data = self.data
        return (
            {"input": input_, "text": text}
            for part in (data.train, data.select, data.test)
            for input_, text in part.pairs()
        )

    def prepare(self) -> None:
        """Fetches the rows, and METEOR where it can be run.

        Raises:
            BenchError: kind `offline` when the rows are nowhere to be had.
        """
        super().prepare()
        meteor.fetch()

    def train(self, tok) -> Dataset:
        """Rows with `labels` that are −100 but for text and eos, and `length`."""
        return Dataset.from_list(self._encode(self.data.train.pairs(), tok, tok.model_max_length))

    def documents(self) -> list[str]:
        """Inputs and texts of train, one after the other as a training row has them."""
        return [part for i, t in self.data.train.pairs() for part in (i, f" {t}")]

    def collator(self, tok):
        """Pads a batch on the right to its longest row."""

        def collate(rows):
            longest = max(len(row["input_ids"]) for row in rows)
            fill = {"input_ids": tok.pad_token_id, "labels": IGNORED, "attention_mask": 0}
            rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
            return {
                key: torch.tensor([r[key] + [pad] * (longest - len(r[key])) for r in rows])
                for key, pad in fill.items()
            }

        return collate

    def calibration(self, tok, n: int, length: int, seed: int) -> list[dict[str, torch.Tensor]]:
        """`n` training rows drawn by `seed`, input and text, in batches of 8."""
        pairs = self.data.train.pairs()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(pairs), generator=generator)[:n].tolist()
        rows = self._encode([pairs[i] for i in chosen], tok, length)
        return token_windows.batches([torch.tensor(row["input_ids"]) for row in rows])

    def evaluate(
        self, model, tok, device, split: str = "test", budget: Budget | None = None
    ) -> Scores:
        """Scores one split; items are sentence BLEU (smoothed), `n` are the inputs.

        With `budget.items` only so many inputs are scored: those whose hashes come first.
        """
        budget = budget or self.budgets["default"]
        every = getattr(self.data, split)
        items = sample(every, budget.items)
        outputs = self.write(model, tok, device, items.inputs, budget.beams or 1)
        notes: list[str] = []
        if len(items) < len(every):
            notes.append(f"scored on {len(items)} of {len(every)} inputs")
        values = self._measured(outputs, items, notes)
        shown = zip(items.inputs, outputs, items.texts, strict=True)
        for input_, output, texts in islice(shown, SHOWN):
            logger.info("input:     %s\nwritten:   %s\nreference: %s\n", input_, output, texts[0])
        return Scores(
            values=values,
            n=len(items),
            items=Bleu().segments(outputs, items.texts),
            notes=tuple(dict.fromkeys(notes)),
        )

    def write(self, model, tok, device, inputs: list[str], beams: int) -> list[str]:
        """One text an input; input and text together keep to `tok.model_max_length` tokens."""
        length = tok.model_max_length
        new = min(NEW_TOKENS, length // 2)
        prompts = [ids[new - length :] for ids in _prompts(inputs, tok)]
        how = Decoding(beams, new, self.length_penalty)
        return generate(model, tok, device, prompts, how)

    def _measured(self, outputs: list[str], items: Items, notes: list[str]) -> dict[str, float]:
        """Scores of all items and, under `<score>_<group>`, of every group."""
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
            except meteor.Missing as why:
                notes.append(str(why))
        return values

    def _encode(self, pairs: list[tuple[str, str]], tok, length: int) -> list[dict]:
        prompts = _prompts([input_ for input_, _ in pairs], tok)
        # The blank in front is LoRA's: a text begins as a word inside a sentence does.
        texts = tok([" " + text for _, text in pairs], add_special_tokens=False)["input_ids"]
        rows = []
        for prompt, text in zip(prompts, texts, strict=True):
            # A token at least stays of the prompt: what the first label is predicted from.
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
    """`n` items in their order, those whose input's hash comes first; all for None."""
    if n is None or n >= len(items):
        return items
    ranked = sorted(range(len(items)), key=lambda i: position(items.inputs[i]))
    return items.take(sorted(ranked[:n]))


def carve(items: Items, fraction: float) -> tuple[Items, Items]:
    """(train, select): items whose input's hash falls below `fraction` are set apart."""
    below = [position(input_) < fraction for input_ in items.inputs]
    train = items.take(i for i, b in enumerate(below) if not b)
    return train, items.take(i for i, b in enumerate(below) if b)


def group(pairs: Iterable[tuple[str, str]]) -> Items:
    """(input, text) pairs → distinct inputs in the order of their first appearance."""
    found: dict[str, list[str]] = {}
    for input_, text in pairs:
        found.setdefault(input_, []).append(text)
    return Items(list(found), list(found.values()), [""] * len(found))


def _prompts(inputs: list[str], tok) -> list[list[int]]:
    """Token ids of the inputs, each with the separator after it."""
    between = tok.eos_token_id if tok.bos_token_id is None else tok.bos_token_id
    distinct = list(dict.fromkeys(inputs))  # a training input stands in a row for each of its texts
    encoded = tok(distinct, add_special_tokens=False)["input_ids"]
    ids = dict(zip(distinct, encoded, strict=True))
    return [[*ids[input_], between] for input_ in inputs]
