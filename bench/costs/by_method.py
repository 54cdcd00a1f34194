"""`sparsebench count`: what each method trains, stores and multiplies, from a config alone.

Nothing is trained or pruned (methods/README.md, "Costs"). Trained elements, products of an update
and the shape of the finished model come from the attached method (`bench.costs.without_weights`).
Zeros are those that the method promises (`Method.expected`). Numbers that depend on the course of
training are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from bench.api import Expected
from bench.core.cell import Budget
from bench.core.errors import BenchError
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern
from bench.core.record_parts import PublishedPart, Trainable
from bench.core.tables import gib, human, percent, plain
from bench.costs import without_weights
from bench.costs.macs import by_target, head_macs, spared_macs
from bench.costs.parameters import compared, count_trainable
from bench.costs.products import forward_macs
from bench.planning.setups import Setup, setups
from bench.sources import limits
from bench.sources.architectures import class_of, config_of, empty
from bench.weights import dead
from bench.weights.patterns import check_groups
from bench.weights.side_branch import Branch
from bench.weights.targets import Target, merge, prunable

STEPS = 1000
"""Number of updates in the budget that methods are attached with; no count depends on it."""


@dataclass(frozen=True)
class Account:
    """The counts of a method at a pattern and a sparsity. None: the run decides the number.

    Attributes:
        method: name of the method.
        pattern: text of the pattern.
        sparsity: fraction of pruned weights.
        trainable: elements that the optimizer holds.
        published: the paper's trained share, and ours of the same denominator.
        share: elements of the body that the optimizer holds, as a fraction of the dense model.
        stored: elements on disk, without the zeros of the target set.
        dense: multiply-adds of a sequence's forward pass, branches included.
        effective: `dense` without products with zeros.
        realizable: `dense` without the products that the device can skip.
        train: multiply-adds of an update, divided by its sequences; 0 where nothing trains.
        state_bytes: bytes of parameters, buffers, a teacher, gradients and Adam's two moments, in
            float32.
    """

    method: str
    pattern: str
    sparsity: float
    trainable: Trainable
    published: PublishedPart | None
    share: float
    stored: int | None
    dense: int
    effective: int | None
    realizable: int | None
    train: int
    state_bytes: int | None


def account(
    setup: Setup,
    budget: Budget,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    kernel: bool,
) -> Account:
    """Counts a method on a model without weights.

    Args:
        setup: the method and its cell.
        budget: batch and length of an update.
        kind: class of the model.
        config: config of the model.
        kernel: whether the device has kernels for 2:4 matrices.

    Raises:
        BenchError: the method refuses the model or the cell, or asks for the weights' values.
    """
    method, cell = setup.method, setup.cell
    attached = without_weights.attach(method, cell, budget, kind, config)
    model, length = attached.model, budget.length
    check_groups(attached.ctx.targets, cell.pattern)
    expected = method.expected(attached.ctx)
    held, train, state = Trainable(body=0, head=0), 0, None
    if method.trains:
        groups = method.param_groups(model)
        held = count_trainable(model, groups)
        train = without_weights.update_macs(attached)
        moments = 2 * sum(p.numel() * p.element_size() for g in groups for p in g["params"])
        parts = without_weights.tensors(model, method)
        state = moments + sum(t.numel() * t.element_size() for t in parts)
        # Not `finish`, which may report on the weights' values.
        merge(model)
    macs = forward_macs(model, length)
    dense = macs[""]
    total = sum(p.numel() for p in model.parameters())
    branches = sum(
        p.numel() for m in model.modules() if isinstance(m, Branch) for p in m.parameters()
    )
    claim, zeros, effective, realizable = method.published, None, None, None
    if expected is not None:
        zeros, realizable = outcome(model, expected, cell.pattern, macs, length, kernel)
        # Zeros lie evenly in the target set.
        products = sum(by_target(model, macs).values())
        effective = round(dense - zeros * products / _elements(prunable(model)))
    return Account(
        method=cell.method,
        pattern=cell.pattern.text,
        sparsity=cell.sparsity,
        trainable=held,
        published=None if claim is None else compared(model, held, claim),
        share=held.body / (total - branches),
        stored=None if zeros is None else total - zeros,
        dense=dense,
        effective=effective,
        realizable=realizable,
        train=train,
        state_bytes=state,
    )


def outcome(
    model: PreTrainedModel,
    expected: Expected,
    pattern: Pattern,
    macs: Mapping[str, int],
    length: int,
    kernel: bool,
) -> tuple[int, int]:
    """Returns (zeros of the target set, realizable multiply-adds of a forward pass).

    Args:
        model: a finished model without weights.
        expected: what the method promises.
        pattern: the cell's pattern.
        macs: multiply-adds of a forward pass by module, zeros included.
        length: tokens of the sequence.
        kernel: whether the device has kernels for 2:4 matrices.
    """
    zeros, realizable = expected.zeros or 0, macs[""]
    if kernel:
        realizable -= spared_macs(model, macs, pattern)
    if expected.heads or expected.neurons or expected.blocks:
        shares = expected.heads, expected.neurons, expected.blocks
        sliced, exact = copy.deepcopy(model), copy.deepcopy(model)
        with torch.device("meta"):
            dead.take_shares(sliced, *shares)
            dead.take_shares(exact, *shares, exactly=True)
        realizable = forward_macs(sliced, length)[""]
        if expected.zeros is None:
            zeros = _elements(prunable(model)) - _elements(prunable(exact))
    return zeros, realizable


def _elements(targets: Sequence[Target]) -> int:
    return sum(t.shape[0] * t.shape[1] for t in targets)


def cost_report(
    name: str,
    methods: Sequence[str] = (),
    pattern: Pattern | None = None,
    sparsity: float = 0.5,
    overrides: Mapping[str, Scalar] | None = None,
    length: int = 128,
    batch: int = 32,
    kernel: bool = False,
) -> str:
    """Returns the costs of methods on a model as text: facts about the model, then a table.

    Args:
        name: slug, hub id, folder or config file of the model.
        methods: names of methods; by default all registered ones.
        pattern: the pattern; by default each method's first.
        sparsity: fraction of pruned weights, for patterns that do not fix one.
        overrides: parameters of the methods.
        length: tokens a sequence.
        batch: sequences an update.
        kernel: whether the device has kernels for 2:4 matrices.

    Raises:
        BenchError: an argument is not allowed, or a named method cannot be counted. If no method
            was named, those that cannot be counted become notes below the table.
    """
    chosen = setups(methods, pattern, sparsity, overrides or {})
    config = config_of(name)
    limits.check_length(config, length, name)
    kind = class_of(config)
    budget = Budget(steps=STEPS, batch=batch, length=length)
    blank = empty(kind, config)
    about = _about(name, blank, length, batch, kernel)  # first, as it refuses what cannot run
    rows, notes = [], []
    for setup in chosen:
        try:
            rows.append(account(setup, budget, kind, config, kernel))
        except BenchError as error:
            if methods:
                raise
            notes.append(f"{setup.cell.method}: {error}")
    if any(row.stored is None for row in rows):
        notes.append("–: the run decides this number; a record counts it in the finished model")
    return "\n".join([*about, "", _table(rows, length), *notes])


def _about(name: str, model: PreTrainedModel, length: int, batch: int, kernel: bool) -> list[str]:
    total = sum(p.numel() for p in model.parameters())
    macs = forward_macs(model, length)
    head = head_macs(model, macs)
    has = "2:4 kernels" if kernel else "no 2:4 kernels"
    return [
        f"{name}: {total:,} parameters, {_elements(prunable(model)):,} of them prunable",
        f"a sequence of {length} tokens: {macs['']:,} MACs forward, {head:,} of them in the head",
        f"MACs below are per token; train: of an update of {batch} sequences; device: {has}",
    ]


def _table(rows: Sequence[Account], length: int) -> str:
    headers = (
        *("method", "pattern", "sparsity", "body", "head", "% of model", "published", "ours"),
        *("stored", "dense", "effective", "realizable", "train", "state"),
    )
    lines = []
    for row in rows:
        claim = row.published
        published = ("–", "–")
        if claim is not None:
            share = f"{100 * claim.share:.3g}%"
            published = (f"{share} of {claim.of}", f"{percent(claim.ours, 3)}%")
        macs = (row.dense, row.effective, row.realizable, row.train)
        lines.append(
            [
                *(row.method, row.pattern, f"{row.sparsity:g}"),
                *(f"{row.trainable.body:,}", f"{row.trainable.head:,}", percent(row.share, 3)),
                *published,
                human(row.stored),
                *(human(None if m is None else m / length) for m in macs),
                "–" if row.state_bytes is None else gib(row.state_bytes),
            ]
        )
    return plain(headers, lines)
