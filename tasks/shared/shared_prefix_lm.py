"""Log-likelihoods of continuations for lm-eval; a prefix that requests share is computed once.

lm-eval runs every (context, continuation) as a row of its own and computes the vocabulary's logits
at every position. Here, requests that begin alike (the choices of a question, the questions about a
passage) become one row, whose prefix is computed once (`tasks.shared.prefix_groups`).

Logits are computed only where a continuation is scored. The numbers are those of lm-eval, up to
the order of additions, because a row is packed only where that is shown to change nothing:

* An input is packed only if it is no longer than every window that the config names (`reach`). The
  mask given here would switch a window off.
* The longest input to be packed is first run both ways (`_packing_agrees`). Its logits must be
  equal at every place. Then they are equal for shorter inputs, too, because the model is causal.

lm-eval's own code scores the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from tasks.shared.prefix_groups import PrefixGroup, batches, group_by_prefix, pack

BATCH_TOKENS = 2048
"""Tokens of a batch, padding included: enough to keep two CPU cores busy. A GPU takes 16 ×."""
TOLERANCE = {torch.float32: 3e-4, torch.float64: 3e-4}
"""Largest difference of packed logits, as a fraction of the logits' standard deviation."""
HALF_TOLERANCE = 5e-2
"""The same where weights have half precision."""

log = logging.getLogger(__name__)

_REACH = re.compile(
    r"(window|window_size|chunk_size|local_attention|original_max_position_embeddings)$"
)


def reach(config: Any) -> int | None:
    """Returns the longest input within every window that a model's config names, if any.

    Windows are sizes of sliding windows, of chunks and of local attention, and the length from
    which rotary frequencies change.
    """
    sizes: list[int] = []

    def collect(value: object, name: str = "") -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, str(key))
        elif isinstance(value, (list, tuple)):
            for inner in value:
                collect(inner, name)
        elif type(value) is int and value > 0 and _REACH.search(name):
            sizes.append(value)

    collect(config.get_text_config(decoder=True).to_dict())
    return min(sizes, default=None)


class SharedPrefixLM(HFLM):  # type: ignore[misc]  # lm-eval is not typed
    """lm-eval's Hugging Face model with shared prefixes."""

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Returns each continuation's (log-likelihood, whether greedy decoding would give it)."""
        # Like lm-eval, cut too long a text on the left; the last token is never an input.
        inputs = [(c + t)[-(self.max_length + 1) :][:-1] for _, c, t in requests]
        longest = min(self.max_length, reach(self.model.config) or self.max_length)
        packed = [i for i, ids in enumerate(inputs) if len(ids) <= longest]
        groups = group_by_prefix([inputs[i] for i in packed], longest)
        if not packed or not self._packing_agrees(
            max((inputs[i] for i in packed), key=len), max(map(len, groups))
        ):
            packed, groups = [], []
        chosen = set(packed)
        plain = [i for i in range(len(requests)) if i not in chosen]
        answers = [(0.0, False)] * len(requests)
        if plain:
            alone = super()._loglikelihood_tokens(
                [requests[i] for i in plain], disable_tqdm, override_bs
            )
            for i, answer in zip(plain, alone, strict=True):
                answers[i] = answer
        bar = tqdm(total=len(packed), disable=disable_tqdm or not packed, desc="shared prefixes")
        many = BATCH_TOKENS * (1 if self.device.type == "cpu" else 16)
        golds = [requests[i][2] for i in packed]
        for batch in batches(groups, many):
            for i, answer in self._score(batch, golds):
                answers[packed[i]] = answer
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
    def _packing_agrees(self, text: list[int], length: int) -> bool:
        """Returns whether packed rows have the logits of their inputs run one by one.

        The first row is `text`, its second half again until `length` is filled, and its start. The
        second row is that start: no number may depend on the longest row of a batch.
        """
        half, rest, start = text[: len(text) // 2], text[len(text) // 2 :], text[:4]
        filling = [rest] * max(0, -(-(length - len(text) - len(start)) // len(rest)))
        rows = [
            PrefixGroup(half, [rest, *filling, start], []),
            PrefixGroup(start, [[]], []),
        ]
        alone = [text, half + start, start]
        end = len(rows[0])
        places = [slice(0, len(text)), slice(end - len(start), end), slice(0, len(start))]
        tolerance = TOLERANCE.get(self.model.dtype, HALF_TOLERANCE)
        head = self.model.get_output_embeddings()
        try:
            with torch.autocast(self.device.type, enabled=False):
                hidden = self._hidden(*(t.to(self.device) for t in pack(rows, 0)))
                for ids, row, at in zip(alone, (0, 0, 1), places, strict=True):
                    packed = hidden[row, at]
                    wanted = self.model(torch.tensor([ids], device=self.device)).logits[0]
                    wanted = wanted[-len(packed) :]
                    allowed = tolerance * float(wanted.float().std())
                    for some, expected in zip(packed.split(128), wanted.split(128), strict=True):
                        error = (head(some).float() - expected.float()).abs().max()
                        if not error <= allowed:  # NaN is an error, too
                            return False
        except Exception as reason:  # whatever a model raises, it does not take packed rows
            log.info("rows are not packed: %s", reason)
            return False
        return True
