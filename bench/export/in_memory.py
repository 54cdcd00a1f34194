"""`sparsebench.prune`: one-shot pruning of a model in memory, in place; folders are pruned with it.

The model keeps its own form: devices, dtypes, training flags, ties, stacked experts and the very
parameter objects. Only values change. The user's random states stay as they are, too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.core import seeds
from bench.core.cell import Budget
from bench.core.errors import BenchError
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern, parse_pattern
from bench.costs.pruned import Pruned, count_pruned
from bench.planning.setups import Setup, context_of, single_setup
from bench.sources import calibration as sequences
from bench.sources import limits
from bench.weights.finite import check_outputs, check_weights
from bench.weights.forms import check_plain, in_eval, in_float32
from bench.weights.unstacked import unstacked
from bench.weights.zeros_before import ZerosBefore


def prune(
    model: PreTrainedModel,
    method: str,
    pattern: str | Pattern | None = None,
    sparsity: float | None = None,
    calibration: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    calib: int = 128,
    length: int | None = None,
    seed: int = 1,
    **parameters: Scalar,
) -> Pruned:
    """Prunes a model in place with a one-shot method, where it lies.

    Args:
        model: any text model of transformers, with a head or without.
        method: a method that does not train, such as `magnitude`, `wanda` or `sparsegpt`.
        pattern: by default the method's first.
        sparsity: fraction to prune; N:M has its own.
        calibration: texts or token ids, for methods that look at inputs. One text or a flat list of
            ids is a stream, from which windows are drawn; a list of texts or of lists of ids holds
            the sequences themselves. Batches with `input_ids` are taken as they are.
        tokenizer: for texts.
        calib: calibration sequences.
        length: tokens a sequence; by default 512 or what the model has positions for.
        seed: draws calibration windows and whatever the method draws.
        parameters: of the method, as `sparsebench list methods NAME` shows them.

    Returns:
        What was counted in the finished model.

    Raises:
        BenchError: bad input, in one line, with the model as it was. A failure on the way, such as
            inputs that are not finite: the model is of its own form, but some matrices may be
            pruned already.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    setup = single_setup(method, pattern, sparsity, parameters, seed, trains=False)
    name = type(model).__name__
    check_plain(model)
    length = sequences.default_length(model.config, length)
    limits.check_length(model.config, length, name)
    batches = None
    if calibration is not None:
        drawn = seeds.derive("calibration", seed)
        batches = sequences.sequences_of(
            calibration, tokenizer, calib, length, drawn, "calibration"
        )
        limits.check_ids(batches, model, "calibration")
    budget = Budget(steps=1, batch=1, length=length, calib=calib)
    start = time.perf_counter()
    before = prune_as(setup, model, budget, batches, name)
    return count_pruned(model, setup.method, setup.cell, before, time.perf_counter() - start)


def prune_as(
    setup: Setup,
    model: PreTrainedModel,
    budget: Budget,
    batches: list[dict[str, Tensor]] | None,
    name: str,
) -> ZerosBefore:
    """Prunes a model in place; the zeros are still to be counted.

    Args:
        setup: the method and its cell.
        model: as `check_plain` lets it pass.
        budget: of the calibration.
        batches: calibration sequences, if there are any.
        name: how messages name the model.

    Returns:
        The zeros that the method was given.

    Raises:
        BenchError: as `prune`.
    """
    made, cell = setup.method, setup.cell
    made.check(cell, budget)
    device = model.device

    def calibration() -> Iterable[dict[str, Tensor]]:
        if batches is None:
            what = "a task, a text or token ids"
            raise BenchError(f"{cell.method} needs calibration: {what} (--calibration)")
        return [{k: v.to(device) for k, v in batch.items()} for batch in batches]

    def teacher() -> PreTrainedModel:
        dense: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)
        return dense

    check_weights(model, name)
    with in_eval(model), unstacked(model), in_float32(model):
        ctx = context_of(cell, budget, model, calibration, teacher, device)
        before = ZerosBefore(ctx.targets)
        before.check_room(ctx.targets, cell.pattern, cell.sparsity, name)
        seeds.seed_all(seeds.derive("method", cell.seed))
        made.attach(model, ctx)
        made.finish(model)
        check_outputs(model, cell.method)
    check_weights(model, cell.method)
    return before
