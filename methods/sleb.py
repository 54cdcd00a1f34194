"""SLEB: blocks are dropped one by one, each time the one that is missed least (arXiv 2402.09025).

j* = argmin over the blocks j that are left of PPL(model without the dropped ones and j)
"""

from __future__ import annotations

from collections.abc import Sequence
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

    The blocks before the missing one put out what they put out in the whole model, so they run once
    for all.

    Args:
        model: in eval mode.
        known: batches, and what is to be predicted.
        left: numbers of blocks.
    """
    losses = torch.zeros(len(left), dtype=torch.float64, device=model.device)
    for batch, aims in known:
        outputs = _outputs(model, batch)
        for place, number in enumerate(left):
            with replaced(blocks(model), _skipping(number, outputs)):
                losses[place] += _loss(_logits(model, batch), aims)
    return losses


def _skipping(missing: int, outputs: dict[nn.Module, Any]) -> Any:
    """Makes blocks before the missing one return what they put out; that one hands on its input."""
    number = {block: i for i, block in enumerate(outputs)}

    def make(block: nn.Module, original: Forward) -> Forward:
        if number[block] > missing:
            return original
        output = outputs[block]
        if number[block] < missing:
            return lambda *args, **kwargs: output
        return lambda *args, **kwargs: handed_on(given(args, kwargs), output)

    return make


def _outputs(model: PreTrainedModel, batch: Batch) -> dict[nn.Module, Any]:
    """Returns what each block puts out."""
    outputs: dict[nn.Module, Any] = {}

    def keep(block: nn.Module, original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs[block] = original(*args, **kwargs)
            return outputs[block]

        return forward

    with replaced(blocks(model), keep):
        run(model, batch)
    return outputs


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
