"""Walking a model block by block for statistics of its inputs (methods/README.md, calibration).

The model is walked block by block. One pass of the unpruned block collects a statistic of every
target's inputs, the block is pruned, and a second pass gives the inputs of the next block. Alive at
any time: one set of hidden states and one block's statistics.

A trial of one sequence tells whether a model allows that: it must call each block once, and a block
that runs again must give the same outputs. Where it does not, the whole model runs for each block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Context
from bench.weights.blocks import blocks, put_out
from bench.weights.precision import without_autocast
from bench.weights.targets import Target, targets_of
from methods.shared.input_statistics import Statistic
from methods.shared.passes import (
    Batch,
    Call,
    Pass,
    arithmetic,
    explained,
    inference,
    run,
    stops,
    trial,
)
from methods.shared.reconstruct import Block
from methods.shared.sequences import sequences

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


S = TypeVar("S", bound=Statistic)


def walk(
    model: PreTrainedModel,
    ctx: Context,
    statistic: Callable[[int, torch.device], S],
    visit: Callable[[list[Target], dict[str, S]], None],
    seconds: dict[str, float],
    prunes: bool = True,
    reconstruct: Callable[[Block], None] | None = None,
) -> None:
    """Walks the blocks in the order of their calls, collecting the statistics of their inputs.

    Args:
        model: in place; its training flag is restored.
        ctx: the method's context.
        statistic: (width, device) → an empty statistic.
        visit: called for every block with its targets and their statistics by name; targets with
            the same input share one statistic. A target that no pass calls is not visited.
        seconds: `forward_s` and `prune_s` are added to.
        prunes: whether `visit` changes weights, so that blocks must be run again.
        reconstruct: called for every block after `visit`, to refit it to its dense outputs.

    Raises:
        BenchError: the model cannot run on the sequences, an input is not finite, or blocks are to
            be reconstructed that cannot run one by one.
    """
    with inference(model):
        clock = _Clock(seconds, ctx.device)
        batches = sequences(model, ctx)
        seen = trial(model, blocks(model), batches[0])
        order = list(dict.fromkeys(seen.order))
        inside = targets_of(order, ctx.targets)
        distinct = sum(map(len, inside)) == len({t.name for part in inside for t in part})
        if seen.repeatable and distinct and len(order) == len(seen.order):
            _walk_once(
                model, order, inside, batches, _Taps(statistic), visit, clock, prunes, reconstruct
            )
        elif reconstruct is not None:
            name = type(model).__name__
            raise BenchError(f"{name} cannot be walked block by block; leave reconstruct at 0")
        else:
            log.info("%s cannot be walked block by block: slower", type(model).__name__)
            _walk_whole(model, inside, batches, _Taps(statistic), visit, clock)


def _walk_once(
    model: PreTrainedModel,
    order: list[nn.Module],
    inside: list[list[Target]],
    batches: list[Batch],
    taps: _Taps[S],
    visit: Callable[[list[Target], dict[str, S]], None],
    clock: _Clock,
    prunes: bool,
    reconstruct: Callable[[Block], None] | None,
) -> None:
    """Runs each block twice on each batch: before it is pruned, and after."""
    passes: list[Pass] = []
    with stops(order) as compute:

        def output(stopped: Pass, block: nn.Module) -> Any:
            if stopped.call is None or stopped.call.block is not block:
                name = type(model).__name__
                raise BenchError(f"{name} calls its blocks in an order that depends on the data")
            taps.enter(stopped.call, stopped.batch)
            with explained(model), arithmetic(model):
                return compute[block](*stopped.call.args, **stopped.call.kwargs)

        try:
            for batch in batches:
                passes.append(Pass(model, batch))
            for block, targets in zip(order, inside, strict=True):
                last = block is order[-1]
                dense: list[Tensor] = []
                taps.open(targets)
                for stopped in passes:
                    found = output(stopped, block)
                    if reconstruct is not None:
                        dense.append(put_out(found))
                    if not prunes and not last:
                        stopped.resume(found)
                    del found
                _visit(taps, targets, visit, clock)
                if reconstruct is not None:
                    runs = [partial(_put_out_of, output, stopped, block) for stopped in passes]
                    with explained(model):
                        reconstruct(Block(targets, runs, dense))
                    clock.lap("reconstruct_s")
                if prunes and not last:
                    for stopped in passes:
                        stopped.resume(output(stopped, block))
            clock.lap("forward_s")
        finally:
            for stopped in passes:
                stopped.close()


def _put_out_of(
    output: Callable[[Pass, nn.Module], Any], stopped: Pass, block: nn.Module
) -> Tensor:
    return put_out(output(stopped, block))


def _walk_whole(
    model: PreTrainedModel,
    inside: list[list[Target]],
    batches: list[Batch],
    taps: _Taps[S],
    visit: Callable[[list[Target], dict[str, S]], None],
    clock: _Clock,
) -> None:
    """Runs the whole model for each block: right for all that runs, and L times as slow.

    A matrix that several blocks share belongs to the first, with the inputs of all.
    """
    done: set[str] = set()
    for part in inside:
        targets = [t for t in part if t.name not in done]
        done.update(t.name for t in targets)
        if not targets:
            continue
        taps.open(targets)
        for batch in batches:
            run(model, batch)
        _visit(taps, targets, visit, clock)


def _visit(
    taps: _Taps[S],
    targets: list[Target],
    visit: Callable[[list[Target], dict[str, S]], None],
    clock: _Clock,
) -> None:
    found = taps.close()
    clock.lap("forward_s")
    called = [t for t in targets if t.name in found]
    if called:
        visit(called, found)
    clock.lap("prune_s")


class _Taps(Generic[S]):
    """Hooks that send every target's input to its statistic.

    q, k, v (or gate, up) are given the same tensor: they share one statistic.
    """

    def __init__(self, statistic: Callable[[int, torch.device], S]) -> None:
        self.statistic = statistic
        self.longer: torch.Size | None = None
        self.length = 0
        self.found: dict[str, S] = {}
        self.seen: tuple[Tensor, S] | None = None
        self.handles: list[RemovableHandle] = []

    def open(self, targets: list[Target]) -> None:
        """Starts anew with the inputs of `targets`."""
        self.found = {}
        self.handles = [
            t.module.register_forward_pre_hook(partial(self._add, t.name)) for t in targets
        ]

    def enter(self, call: Call, batch: Batch) -> None:
        """Looks at what a block is given: local attention fills sequences up, on the right."""
        rows, self.length = next(iter(batch.values())).shape[:2]
        given = (v for v in (*call.args, *call.kwargs.values()) if isinstance(v, Tensor))
        hidden = next((v for v in given if v.ndim == 3), None)
        longer = hidden is not None and len(hidden) == rows and hidden.shape[1] > self.length
        self.longer = hidden.shape[:2] if hidden is not None and longer else None

    def _add(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if self.seen and x is self.seen[0]:
            self.found[name] = self.seen[1]
            return
        if name not in self.found:
            self.found[name] = self.statistic(x.shape[-1], x.device)
        self.seen = (x, self.found[name])
        if x.shape[:2] == self.longer:
            x = x[:, : self.length]
        with without_autocast(x):
            self.found[name].add(x.reshape(-1, x.shape[-1]))

    def close(self) -> dict[str, S]:
        """Removes the hooks and returns the statistics by target.

        Raises:
            BenchError: kind `nan`; the inputs of a matrix are not finite.
        """
        for handle in self.handles:
            handle.remove()
        found, self.found, self.seen = self.found, {}, None
        for name, statistic in found.items():
            if not statistic.finite:
                raise BenchError(f"the calibration inputs of {name} are not finite", "nan")
        return found


class _Clock:
    """Adds the seconds since the last lap to a phase."""

    def __init__(self, seconds: dict[str, float], device: torch.device) -> None:
        self.seconds, self.device = seconds, device
        self.start = self._now()

    def lap(self, phase: str) -> None:
        """Ends a lap."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.start
        self.start = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
