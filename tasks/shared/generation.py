"""Prompts → texts: greedy or beam search in padded batches, the same whatever batch a prompt is in.

Beam search is that of LoRA's GPT-2 scripts (arXiv 2106.09685, table 11): a finished hypothesis
scores log-probability / length^penalty over its own tokens, and no n-gram occurs twice in the
generated text. What stands in the prompt may be repeated, so that names can be copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from bench.api import BenchError

# Hypotheses at once: on two cores a step's time grows with them from here on.
ROWS = 32


@dataclass(frozen=True)
class Decoding:
    """How texts are searched for.

    Attributes:
        beams: beam width; 1 is greedy.
        tokens: a text is cut after so many.
        length_penalty: exponent of the length; beam search only.
        no_repeat: size of the n-grams that occur once at most.
    """

    beams: int
    tokens: int
    length_penalty: float
    no_repeat: int = 4


class _OwnText(LogitsProcessor):
    """No n-gram twice in what follows the prompt; stops at outputs that are no numbers."""

    def __init__(self, size: int, start: int) -> None:
        self.ban = NoRepeatNGramLogitsProcessor(size)
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise BenchError("the model's outputs are not finite", "nan")
        return self.ban(input_ids[:, self.start :], scores)


# Not in inference mode: autocast would then cast the weights anew for every token.
@torch.no_grad()
def generate(model, tok, device, prompts: list[list[int]], how: Decoding) -> list[str]:
    """One text a prompt, without special tokens, cut at a blank line, in one line.

    A batch stops when all its texts have ended, so prompts of like length go together. A prompt is
    a list of token ids, not empty.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = max(1, ROWS // how.beams)
    texts = [""] * len(prompts)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        ids, mask = pad_left([prompts[i] for i in chosen], tok.pad_token_id)
        width = ids.shape[1]
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_config(tok, how),
            logits_processor=LogitsProcessorList([_OwnText(how.no_repeat, width)]),
        )
        for i, row in zip(chosen, output[:, width:].tolist(), strict=True):
            texts[i] = _text(tok, row)
    return texts


def pad_left(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (n, longest): the last token of every row is in the last place.

    The mask tells padding from tokens, so `pad` may be a token that occurs (GPT-2 has no other).
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids, mask


def _config(tok, how: Decoding) -> GenerationConfig:
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


def _text(tok, ids: list[int]) -> str:
    if tok.eos_token_id in ids:
        ids = ids[: ids.index(tok.eos_token_id)]
    return " ".join(tok.decode(ids, skip_special_tokens=True).split("\n\n")[0].split())
