"""Walking a model block by block for statistics of its inputs (methods/README.md, calibration).

The model is walked block by block. One pass of the unpruned block collects a statistic of every
target's inputs, the block is pruned, and a second pass gives the inputs of the next block. Alive at
any time: one set of hidden states and one block's statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Context
from bench.weights.blocks import blocks
from bench.weights.targets import Target
from bench.weights.unstacked import tokens_given

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Statistic(Protocol):
    """What is collected of a matrix's inputs."""

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""


S = TypeVar("S", bound=Statistic)


class ColumnNorms:
    """‖X_j‖₂ of every input column j over all calibration tokens; float32, (in,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.squares = torch.zeros(width, device=device)

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        self.squares += x.float().square().sum(0)

    @property
    def norms(self) -> Tensor:
        """The norms, (in,)."""
        return self.squares.sqrt()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Returns |W_ij|·‖X_j‖₂ (arXiv 2306.11695), (out, in)."""
    return weight.abs() * norms


def walk(
    model: PreTrainedModel,
    ctx: Context,
    statistic: Callable[[int, torch.device], S],
    visit: Callable[[list[Target], dict[str, S]], None],
    seconds: dict[str, float],
    prunes: bool = True,
) -> None:
    """Walks the blocks in order, collecting the statistics of their inputs.

    Args:
        model: in place; its training flag is restored.
        ctx: the method's context.
        statistic: (width, device) → an empty statistic.
        visit: called for every block with its targets and their statistics by name; targets with
            the same input share one statistic.
        seconds: `forward_s` and `prune_s` are added to.
        prunes: whether `visit` changes weights, so that blocks must be run again.
    """
    targets = {id(t.module): t for t in ctx.targets}
    with _inference(model):
        start = _now(ctx.device)
        hidden, calls, tokens = _first_inputs(model, ctx)
        last = len(blocks(model)) - 1
        for index, block in enumerate(blocks(model)):
            inside = [targets[id(m)] for m in block.modules() if id(m) in targets]
            taps = _Taps(statistic, inside)
            for b, call in enumerate(calls):
                taps.tokens = tokens[b]
                out = _run(block, hidden[b], call[index])
                if not prunes:
                    hidden[b] = out
                del out
            found = taps.close()
            start = _lap(seconds, "forward_s", start, ctx.device)
            visit(inside, found)
            del found, taps
            start = _lap(seconds, "prune_s", start, ctx.device)
            if prunes and index < last:
                for b, call in enumerate(calls):
                    hidden[b] = _run(block, hidden[b], call[index])
        _lap(seconds, "forward_s", start, ctx.device)


class _Call(NamedTuple):
    """What a block is called with beside its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Taps(Generic[S]):
    """Hooks that send every target's input to its statistic, padding left out.

    q, k, v (or gate, up) are given the same tensor: they share one statistic.
    """

    def __init__(self, statistic: Callable[[int, torch.device], S], targets: list[Target]) -> None:
        self.statistic = statistic
        self.found: dict[str, S] = {}
        self.tokens: Tensor | None = None
        self.seen: tuple[Tensor, S] | None = None
        self.handles = [
            t.module.register_forward_pre_hook(partial(self._add, t.name)) for t in targets
        ]

    def _add(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if self.seen and x is self.seen[0]:
            self.found[name] = self.seen[1]
            return
        if name not in self.found:
            self.found[name] = self.statistic(x.shape[-1], x.device)
        self.seen = (x, self.found[name])
        rows = x.reshape(-1, x.shape[-1])
        if self.tokens is not None:
            real = tokens_given(module, self.tokens)
            if len(rows) != len(real):
                raise BenchError(f"{name} is given {len(rows)} tokens of {len(self.tokens)}")
            rows = rows[real]
        self.found[name].add(rows)

    def close(self) -> dict[str, S]:
        """Removes the hooks and returns the statistics by target."""
        for handle in self.handles:
            handle.remove()
        self.seen = None
        return self.found


class _Captured(Exception):
    """All blocks have been called."""


def _first_inputs(
    model: PreTrainedModel, ctx: Context
) -> tuple[list[Tensor], list[list[_Call]], list[Tensor | None]]:
    """Runs what lies before the blocks.

    Every block is stubbed while the model calls it, so its own mask, positions and flags are
    recorded as the architecture passes them, at the price of the embeddings alone.

    Returns:
        Per calibration batch: the hidden states (batch, tokens, d) that enter the first block, the
        (args, kwargs) of every block without its hidden states, and which of the tokens are real
        (flat bool, None for all).
    """
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = []
    tokens: list[Tensor | None] = []
    layers = blocks(model)
    depth = getattr(model.config, "num_hidden_layers", len(layers))
    if getattr(model.config, "is_encoder_decoder", False) or depth != len(layers):
        raise BenchError(
            f"{type(model).__name__} does not call its {len(layers)} blocks one after another, "
            "each once; use a method without calibration"
        )

    def stub(*args: Any, **kwargs: Any) -> Tensor:
        x: Tensor = args[0] if args else kwargs.pop("hidden_states")
        if not calls[-1]:
            hidden.append(x)
        calls[-1].append(_Call(args[1:], kwargs))
        if len(calls[-1]) == len(layers):
            raise _Captured
        return x

    originals = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = stub
        for batch in ctx.calibration():
            calls.append([])
            mask = batch.get("attention_mask")
            real = None if mask is None else mask.bool().reshape(-1)
            tokens.append(None if real is None or bool(real.all()) else real)
            try:
                model(**batch)
            except _Captured:
                continue
            raise BenchError(f"{type(model).__name__} does not call its blocks one by one")
    finally:
        for layer, original in zip(layers, originals, strict=True):
            del layer.forward
            if original is not None:
                layer.forward = original
    if not hidden:
        raise BenchError("the task gave no calibration batches")
    return hidden, calls, tokens


def _run(block: nn.Module, hidden: Tensor, call: _Call) -> Tensor:
    out = block(hidden, *call.args, **call.kwargs)
    states: Tensor = out[0] if isinstance(out, tuple) else out
    return states


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """Sets eval mode, no gradients, and no cache: a block that is run twice would append to it."""
    training, cache = model.training, getattr(model.config, "use_cache", None)
    model.eval()
    model.config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        if cache is None:
            del model.config.use_cache
        else:
            model.config.use_cache = cache


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _lap(seconds: dict[str, float], phase: str, start: float, device: torch.device) -> float:
    now = _now(device)
    seconds[phase] += now - start
    return now
