"""SLEB: blocks are dropped one by one, each time the one that is missed least (arXiv 2402.09025).

j* = argmin over the blocks j that are left of PPL(model without the dropped ones and j)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.api import BenchError, Context, Field, parameters
from bench.weights import dead
from bench.weights.blocks import blocks, given, handed_on
from methods.shared.passes import Batch, Forward, replaced, run, trial
from methods.shared.sequences import sequences
from methods.shared.whole_blocks import DropsBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**26
"""Logits that are held at once; in float32 256 MiB."""


class SLEB(DropsBlocks):
    """Greedy removal of blocks by the loss on calibration text."""

    name: ClassVar[str] = "sleb"
    summary: ClassVar[str] = "Drops, one by one, the block whose absence costs least perplexity."
    paper: ClassVar[str] = "arXiv 2402.09025, ICML"
    year: ClassVar[int] = 2024

    @parameters
    class Params:
        """How greedy it is."""

        at_once: int = Field(
            default=1, ge=1, description="blocks that are dropped before the others are tried again"
        )

    params: Params

    def drop(self, model: PreTrainedModel, ctx: Context, n: int) -> None:
        """Silences `n` blocks; the first among equals.

        Raises:
            BenchError: the model does not call its blocks once each and in order.
        """
        batches = sequences(model, ctx)
        seen = trial(model, blocks(model), batches[0])
        if not seen.repeatable or seen.order != blocks(model):
            name = type(model).__name__
            raise BenchError(f"sleb: {name} does not call each block once and in order")
        known = [(batch, wanted(model, batch)) for batch in _small(model, batches)]
        gone: list[int] = []
        while len(gone) < n:
            left = [number for number in range(len(blocks(model))) if number not in gone]
            losses = losses_without(model, known, left)
            order = losses.sort(stable=True).indices.tolist()
            gone += [left[i] for i in order[: min(self.params.at_once, n - len(gone))]]
            dead.silence(model, gone)


def wanted(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Returns what a model is to predict: the next tokens, or what the whole model puts out."""
    if model.get_output_embeddings() is not None:
        return batch["input_ids"][:, 1:]
    logits = _logits(model, batch)
    return logits.softmax(-1) if logits.shape[-1] > 1 else logits


def losses_without(
    model: PreTrainedModel, known: Sequence[tuple[Batch, Tensor]], left: Sequence[int]
) -> Tensor:
    """Returns the loss of the model without each of the blocks `left`, in nats, float64.

    The missing block goes from the first to the last. What the blocks before it put out is kept, so
    they do not run again. Blocks that are gone do not run.

    Args:
        model: in eval mode.
        known: batches, and what is to be predicted.
        left: numbers of blocks, ascending.
    """
    losses = torch.zeros(len(left), dtype=torch.float64, device=model.device)
    inside = blocks(model)
    for batch, aims in known:
        outputs: list[Any] = []  # of the block before the missing one, and then of that one
        for place, missing in enumerate(left):
            before, after = inside[:missing], [inside[number] for number in left[place + 1 :]]
            with replaced(inside, _without(inside[missing], before, after, outputs)):
                losses[place] += _loss(_logits(model, batch), aims)
            del outputs[:-1]
    return losses


def _without(
    missing: nn.Module,
    before: Sequence[nn.Module],
    after: Sequence[nn.Module],
    outputs: list[Any],
) -> Callable[[nn.Module, Forward], Forward]:
    """Makes a block hand on its input, and all that need not run return what is known.

    Args:
        missing: the block; what it puts out is appended to `outputs`.
        before: the blocks before it.
        after: the blocks after it that run. Others hand on their input.
        outputs: empty, or what the last of the blocks before it puts out.
    """
    known = outputs[0] if outputs else None

    def make(block: nn.Module, original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if block is missing:
                outputs.append(original(*args, **kwargs))
            return handed_on(given(args, kwargs), outputs[-1])

        if block in after or (block in before and known is None):
            return original
        return (lambda *args, **kwargs: known) if block in before else forward

    return make


def _small(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Batch]:
    """Splits batches, so that their logits need little memory."""
    found = []
    for batch in batches:
        rows, length = batch["input_ids"].shape
        size = max(1, LOGITS // (length * model.config.vocab_size))
        found += [{k: v[at : at + size] for k, v in batch.items()} for at in range(0, rows, size)]
    return found


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits: Tensor = run(model, batch).logits
    return logits.float()


def _loss(logits: Tensor, aims: Tensor) -> Tensor:
    """Returns the summed loss of all predictions: of tokens, of a classifier, of a regression."""
    if logits.ndim == 3:
        return cross_entropy(logits[:, :-1].flatten(0, 1), aims.flatten(), reduction="sum")
    if logits.shape[-1] > 1:
        return cross_entropy(logits, aims, reduction="sum")
    return (logits - aims).square().sum()
