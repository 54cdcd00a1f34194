"""Text generation by greedy or beam search; a prompt's text does not depend on its batch.

Beam search is that of LoRA's GPT-2 scripts (arXiv 2106.09685, table 11). A finished hypothesis
scores log-probability / length^penalty over its own tokens, and no n-gram occurs twice in the
generated text. N-grams of the prompt may be repeated, so that names can be copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from bench.api import BenchError

HYPOTHESES = 32
"""Hypotheses of a batch: with more, a step takes proportionally longer on two cores."""


@dataclass(frozen=True)
class Decoding:
    """How texts are searched for.

    Attributes:
        beams: beam width; 1 is greedy.
        tokens: a text's largest number of tokens.
        length_penalty: exponent of the length; beam search only.
        no_repeat: size of the n-grams that occur at most once.
    """

    beams: int
    tokens: int
    length_penalty: float
    no_repeat: int = 4


class _OwnText(LogitsProcessor):
    """Bans n-grams that occurred since the prompt, and stops at outputs that are no numbers."""

    def __init__(self, size: int, start: int) -> None:
        self.ban = NoRepeatNGramLogitsProcessor(size)
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise BenchError("the model's outputs are not finite", "nan")
        allowed: Tensor = self.ban(input_ids[:, self.start :], scores)
        return allowed


# Not in inference mode: autocast would then cast the weights anew for every token.
@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    device: torch.device,
    prompts: list[list[int]],
    how: Decoding,
) -> list[str]:
    """Writes a text for each prompt: up to a blank line, in one line, without special tokens.

    A batch stops when all its texts have ended, so prompts of similar length share one. Every
    prompt has at least one token id.

    Raises:
        BenchError: kind `nan` when an output is not a number.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = max(1, HYPOTHESES // how.beams)
    texts = [""] * len(prompts)
    # transformers declares `generate` on the mixin of causal models only.
    search = cast(Callable[..., Tensor], model.generate)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        ids, mask = pad_left([prompts[i] for i in chosen], tok.pad_token_id)
        width = ids.shape[1]
        output = search(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_config(tok, how),
            logits_processor=LogitsProcessorList([_OwnText(how.no_repeat, width)]),
        )
        for i, row in zip(chosen, output[:, width:].tolist(), strict=True):
            texts[i] = _text(tok, row)
    return texts


def pad_left(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Returns (ids, attention mask), both (n, longest), with each row's last token in last place.

    The mask tells padding from tokens, so `pad` may be a token that occurs (GPT-2 has no other).
    """
    ids = pad_sequence([torch.tensor(row) for row in rows], True, pad, "left")
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True, 0, "left")
    return ids, mask


def _config(tok: PreTrainedTokenizerBase, how: Decoding) -> GenerationConfig:
    beam_search = {"length_penalty": how.length_penalty} if how.beams > 1 else {}
    return GenerationConfig(
        max_new_tokens=how.tokens,
        num_beams=how.beams,
        do_sample=False,
        use_cache=True,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        **beam_search,
    )


def _text(tok: PreTrainedTokenizerBase, ids: list[int]) -> str:
    if tok.eos_token_id in ids:
        ids = ids[: ids.index(tok.eos_token_id)]
    decoded = str(tok.decode(ids, skip_special_tokens=True))
    return " ".join(decoded.split("\n\n")[0].split())
