"""What the one-shot methods that look at activations share (methods/README.md, calibration).

The model is walked block by block. One pass of the unpruned block collects a statistic of every
target's inputs, the block is pruned, and a second pass gives the inputs of the next block. Alive at
any time: one set of hidden states and one block's statistics.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from bench.api import BenchError, Method, Pattern, Published
from bench.weights.targets import blocks
from methods.shared.masks import groups_of, pruned_count


class ColumnNorms:
    """‖X_j‖₂ of every input column j over all calibration tokens; float32, (in,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.squares = torch.zeros(width, device=device)

    def add(self, x: Tensor) -> None:
        """Accumulates `x`: (tokens, in)."""
        self.squares += x.float().square().sum(0)

    @property
    def norms(self) -> Tensor:
        """(in,)."""
        return self.squares.sqrt()


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij|·‖X_j‖₂ (arXiv 2306.11695), (out, in)."""
    return weight.abs() * norms


class OneShot(Method):
    """A method that prunes every matrix once, from a statistic of its inputs.

    A subclass says which statistic and how a matrix is pruned; it may override `counts`.

    Attributes:
        report: seconds in forward passes (`forward_s`) and in pruning (`prune_s`), all blocks.
        n_m: (N, M) of the cell's pattern, or None.
    """

    patterns: ClassVar[tuple[Pattern, ...]] = ("unstructured", "N:M")
    published: ClassVar[Published | None] = Published(0.0, "model", "training-free")

    @abstractmethod
    def statistic(self, width: int, device: torch.device):
        """An empty statistic of a matrix with `width` inputs: it has `add(x)`, x (tokens, in)."""

    @abstractmethod
    def pruned(self, weight: Tensor, statistic, k: int) -> Tensor:
        """The new weight, (out, in) float32, with `k` zeros, or N:M where `self.n_m` is set."""

    def counts(self, model, ctx) -> dict[str, int]:
        """How many weights each matrix loses: the cell's sparsity, everywhere the same."""
        return {t.name: pruned_count(t.stored.numel(), ctx.cell.sparsity) for t in ctx.targets}

    def attach(self, model, ctx) -> None:
        """Prunes all targets, block by block."""
        self.report = {"forward_s": 0.0, "prune_s": 0.0}
        self.n_m = ctx.cell.pattern.n_m
        if self.n_m:
            for target in ctx.targets:
                groups_of(target.shape[1], *self.n_m, target.name)
        if ctx.cell.sparsity == 0:
            return
        counts = self.counts(model, ctx)

        def visit(inside, found):
            for target in inside:
                # Popped: a statistic is freed as soon as its last matrix has been pruned.
                statistic = found.pop(target.name)
                weight = self.pruned(target.weight.float(), statistic, counts[target.name])
                target.write(weight)

        walk(model, ctx, self.statistic, visit, self.report)

    def finish(self, model) -> None:
        """The zeros are in the weights already."""


def walk(model, ctx, statistic, visit, seconds, prunes: bool = True) -> None:
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


class _Taps:
    """Hooks that send every target's input to its statistic, padding left out.

    q, k, v (or gate, up) are given the same tensor: they share one statistic.
    """

    def __init__(self, statistic, targets) -> None:
        self.statistic = statistic
        self.found: dict[str, object] = {}
        self.tokens: Tensor | None = None
        self.seen: tuple[Tensor | None, object] = (None, None)
        self.handles = [
            t.module.register_forward_pre_hook(
                lambda module, args, name=t.name: self._add(name, args[0])
            )
            for t in targets
        ]

    def _add(self, name: str, x: Tensor) -> None:
        if x is self.seen[0]:
            self.found[name] = self.seen[1]
            return
        if name not in self.found:
            self.found[name] = self.statistic(x.shape[-1], x.device)
        self.seen = (x, self.found[name])
        rows = x.reshape(-1, x.shape[-1])
        if self.tokens is not None:
            if len(rows) != len(self.tokens):
                raise BenchError(f"{name} is given {len(rows)} tokens of {len(self.tokens)}")
            rows = rows[self.tokens]
        self.found[name].add(rows)

    def close(self) -> dict:
        """Removes the hooks; statistics by target."""
        for handle in self.handles:
            handle.remove()
        self.seen = (None, None)
        return self.found


class _Captured(Exception):
    """All blocks have been called."""


def _first_inputs(model, ctx) -> tuple[list, list, list]:
    """Runs what lies before the blocks.

    Every block is stubbed while the model calls it, so its own mask, positions and flags are
    recorded as the architecture passes them, at the price of the embeddings alone.

    Returns:
        Per calibration batch: the hidden states (batch, tokens, d) that enter the first block, the
        (args, kwargs) of every block without its hidden states, and which of the tokens are real
        (flat bool, None for all).
    """
    hidden, calls, tokens = [], [], []
    layers = blocks(model)

    def stub(*args, **kwargs):
        x, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if not calls[-1]:
            hidden.append(x)
        calls[-1].append((args, kwargs))
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


def _run(block, hidden: Tensor, call) -> Tensor:
    args, kwargs = call
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def _inference(model) -> Iterator[None]:
    """Eval mode, no gradients, and no cache: a block that is run twice would append to it."""
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
