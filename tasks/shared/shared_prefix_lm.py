"""Log-likelihoods of continuations for lm-eval; a prefix that requests share is computed once.

lm-eval runs every (context, continuation) as a row of its own and computes the vocabulary's logits
at every position. Here, requests that begin alike (the choices of a question, the questions about a
passage) become one row: the shared prefix, then every rest, which sees the prefix and itself.

    tokens      p p p p  a a a  b b       positions   0 1 2 3  4 5 6  4 5
    a sees      p p p p  a a a            b sees      p p p p  b b

Logits are computed only where a continuation is scored. The numbers are those of lm-eval, up to
the order of additions. A model that does not take such masks (`_supports_packing`) is scored by
lm-eval's own code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

MIN_SHARED = 8
"""Shorter prefixes are not shared: the mask would cost more than it saves."""
BATCH_TOKENS = 2048
"""Tokens of a batch, padding included: enough to keep two CPU cores busy. A GPU takes 16 ×."""


@dataclass
class PrefixGroup:
    """Inputs with a common prefix, which become one row of a batch.

    Attributes:
        shared: the token ids of the prefix.
        rests: the token ids that follow it, without duplicates; some may be empty.
        members: for each rest, the numbers of the inputs that end with it.
    """

    shared: list[int]
    rests: list[list[int]]
    members: list[list[int]]

    def __len__(self) -> int:
        return len(self.shared) + sum(map(len, self.rests))


def group_by_prefix(inputs: Sequence[Sequence[int]]) -> list[PrefixGroup]:
    """Groups inputs by their prefixes.

    The inputs are sorted, so that those with equal starts are adjacent. An input joins the group
    before it unless the group's prefix would lose more than a quarter.
    """
    order = sorted(range(len(inputs)), key=lambda i: tuple(inputs[i]))
    groups: list[PrefixGroup] = []
    group: list[int] = []
    shared = 0
    for i in order:
        if group:
            common = _common(inputs[group[0]], inputs[i], shared)
            alone = len(group) == 1
            if common >= MIN_SHARED and (alone or common >= 0.75 * shared):
                shared = common
                group.append(i)
                continue
            if tuple(inputs[group[-1]]) == tuple(inputs[i]):
                group.append(i)
                continue
            groups.append(_group(inputs, group, shared))
        group, shared = [i], len(inputs[i])
    if group:
        groups.append(_group(inputs, group, shared))
    return groups


def _common(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Returns the length of the common prefix, at most `limit`."""
    n = min(len(a), len(b), limit)
    return next((i for i in range(n) if a[i] != b[i]), n)


def _group(inputs: Sequence[Sequence[int]], members: list[int], shared: int) -> PrefixGroup:
    by_rest: dict[tuple[int, ...], list[int]] = {}
    for i in members:
        by_rest.setdefault(tuple(inputs[i][shared:]), []).append(i)
    prefix = list(inputs[members[0]][:shared])
    return PrefixGroup(prefix, [list(rest) for rest in by_rest], list(by_rest.values()))


def pack(rows: Sequence[PrefixGroup], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids and positions, (rows, length), and the mask, (rows, 1, length, length).

    The mask is True where the third axis's token sees the last axis's token. Padding sees itself,
    because a softmax over nothing is not a number.
    """
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    sees = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for r, row in enumerate(rows):
        p = len(row.shared)
        ids[r, :p] = torch.tensor(row.shared)
        positions[r, :p] = torch.arange(p)
        sees[r, :p, :p] = causal[:p, :p]
        start = p
        for rest in row.rests:
            n = len(rest)
            inside = slice(start, start + n)
            ids[r, inside] = torch.tensor(rest, dtype=torch.long)
            positions[r, inside] = torch.arange(p, p + n)
            sees[r, inside, :p] = True
            sees[r, inside, inside] = causal[:n, :n]
            start += n
    return ids, positions, sees[:, None]


def batches(rows: list[PrefixGroup], tokens: int) -> Iterator[list[PrefixGroup]]:
    """Yields batches of at most `tokens` tokens, the longest rows first.

    Rows of a batch are then of similar length, and too large a batch runs out of memory at once.
    """
    rows = sorted(rows, key=len, reverse=True)
    while rows:
        n = max(1, tokens // max(1, len(rows[0])))
        yield rows[:n]
        rows = rows[n:]


class SharedPrefixLM(HFLM):  # type: ignore[misc]  # lm-eval is not typed
    """lm-eval's Hugging Face model with shared prefixes."""

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Returns each continuation's (log-likelihood, whether greedy decoding would give it)."""
        if not self._supports_packing():
            answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm, override_bs
            )
            return answers
        # Like lm-eval, cut too long a text on the left; the last token is never an input.
        inputs = [(c + t)[-(self.max_length + 1) :][:-1] for _, c, t in requests]
        golds = [t for _, _, t in requests]
        answers = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood requests")
        many = BATCH_TOKENS * (1 if self.device.type == "cpu" else 16)
        for batch in batches(group_by_prefix(inputs), many):
            for i, answer in self._score(batch, golds):
                answers[i] = answer
                bar.update(1)
        bar.close()
        return answers

    def _score(
        self, rows: list[PrefixGroup], golds: Sequence[list[int]]
    ) -> Iterable[tuple[int, tuple[float, bool]]]:
        """Yields (request, its answer) for every member of the rows."""
        ids, positions, sees = (t.to(self.device) for t in pack(rows, 0))
        # The flat places of the tokens that predict the gold tokens, request by request.
        wanted, members, places = [], [], []
        for r, row in enumerate(rows):
            start = len(row.shared)
            for rest, inside in zip(row.rests, row.members, strict=True):
                path = [*range(len(row.shared)), *range(start, start + len(rest))]
                for i in inside:
                    members.append(i)
                    wanted += golds[i]
                    places += [r * ids.shape[1] + at for at in path[-len(golds[i]) :]]
                start += len(rest)
        with torch.no_grad(), self._precision():
            hidden = self._hidden(ids, positions, sees).flatten(0, 1)
            head = self.model.get_output_embeddings()
            values, greedy = [], []
            # The float32 log-softmax over the vocabulary is the largest tensor by far.
            for at, gold in zip(
                torch.tensor(places, device=self.device).split(512),
                torch.tensor(wanted, device=self.device).split(512),
                strict=True,
            ):
                logits = head(hidden[at]).float()
                values.append(logits.log_softmax(-1).gather(1, gold[:, None])[:, 0])
                greedy.append(logits.argmax(-1) == gold)
        sizes = [len(golds[i]) for i in members]
        totals = [float(part.double().sum()) for part in torch.cat(values).cpu().split(sizes)]
        exact = [bool(part.all()) for part in torch.cat(greedy).cpu().split(sizes)]
        return zip(members, zip(totals, exact, strict=True), strict=True)

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )

    def _hidden(self, ids: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
        """Returns the last hidden states, (rows, length, width)."""
        if self.model.config._attn_implementation != "sdpa":
            lowest = torch.finfo(self.model.dtype).min
            sees = torch.zeros_like(sees, dtype=self.model.dtype).masked_fill(~sees, lowest)
        out = self.model.base_model(
            input_ids=ids, position_ids=positions, attention_mask=sees, use_cache=False
        )
        hidden: Tensor = out[0]
        return hidden

    @torch.no_grad()
    def _supports_packing(self) -> bool:
        """Returns whether a small packed row has the logits of its inputs run one by one."""
        if not hasattr(self, "_packs"):
            texts = [5, 9, 3, 8, 6], [5, 9, 3, 4]
            row = PrefixGroup([5, 9, 3], [[8, 6], [4]], [[0], [1]])
            head = self.model.get_output_embeddings()
            try:
                packed = head(self._hidden(*(t.to(self.device) for t in pack([row], 0))))[0]
                ids = [torch.tensor([text], device=self.device) for text in texts]
                alone = [self.model(x).logits[0] for x in ids]
            except (TypeError, ValueError, RuntimeError):
                self._packs = False
                return False
            expected = torch.cat([alone[0], alone[1][3:]]).float()
            error = (packed.float() - expected).abs().max()
            self._packs = bool(error <= 1e-2 * expected.std())
        return self._packs
