"""Counts parameters and sparsity of the exported, reloaded model; a zero is `== 0.0`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from bench.api import Published
from bench.core.errors import BenchError
from bench.core.pattern import Pattern
from bench.core.record_parts import Params, PublishedPart, Sparsity, Trainable
from bench.weights.patterns import density, holds, local
from bench.weights.side_branch import Branch
from bench.weights.targets import block_elements, head_parameters, prunable
from bench.weights.zeros_before import ZerosBefore


def count_params(
    model: PreTrainedModel, trainable: Trainable, published: Published | None = None
) -> Params:
    """Counts the elements of a plain model; tied tensors count once.

    Args:
        model: the exported model.
        trainable: number of elements that the optimizer held.
        published: the trained share that the method's paper prints.
    """
    total = sum(p.numel() for p in model.parameters())
    targets = prunable(model)
    pruned = sum(t.shape[0] * t.shape[1] for t in targets)
    nonzero = sum(int(torch.count_nonzero(t.stored)) for t in targets)
    return Params(
        total=total,
        prunable=pruned,
        nonzero=nonzero,
        stored=total - pruned + nonzero,
        matrices=None if (whole := block_elements(model)) == pruned else whole,
        trainable=trainable,
        published=None if published is None else compared(model, trainable, published),
    )


def compared(model: PreTrainedModel, trainable: Trainable, published: Published) -> PublishedPart:
    """Puts our trained share beside a published one, with the same denominator.

    The denominator excludes side branches.
    """
    whole = sum(p.numel() for p in model.parameters())
    branches = [m for m in model.modules() if isinstance(m, Branch)]
    whole -= sum(p.numel() for branch in branches for p in branch.parameters())
    if published.of == "weights+scores":
        whole += sum(t.shape[0] * t.shape[1] for t in prunable(model))
    trained = trainable.body + (trainable.head if published.head else 0)
    return PublishedPart(
        share=published.share,
        ours=trained / whole,
        of=published.of,
        denominator=whole,
        head=published.head,
        setting=published.setting,
    )


def count_sparsity(
    model: PreTrainedModel,
    pattern: Pattern,
    before: ZerosBefore | None = None,
    left_dense: Collection[str] = (),
) -> Sparsity:
    """Measures the fractions of exact zeros, and checks the pattern.

    `overall` is over all matrices of the blocks; the routers among them count as dense.

    Args:
        model: the exported model.
        pattern: the cell's.
        before: the zeros that the method was given.
        left_dense: names of targets that need not hold the pattern.

    Raises:
        BenchError: kind `contract`: a module is still parametrized.
    """
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise BenchError("the exported model still holds parametrizations", "contract")
    targets = prunable(model)
    levels = [1.0 - density(t) for t in targets]
    sizes = [t.shape[0] * t.shape[1] for t in targets]
    zeros = sum(v * n for v, n in zip(levels, sizes, strict=True))
    return Sparsity(
        overall=zeros / block_elements(model),
        min_layer=min(levels),
        max_layer=max(levels),
        pattern_ok=all(
            holds(t.weight, local(pattern, t)) for t in targets if t.name not in left_dense
        ),
        before=before.zeros / block_elements(model) if before and before.zeros else None,
    )


def count_trainable(model: PreTrainedModel, groups: list[dict[str, Any]]) -> Trainable:
    """Counts the elements in the optimizer's groups, those of the task's head apart."""
    held = {id(p): p.numel() for group in groups for p in group["params"]}
    head = sum(held.pop(id(p), 0) for _, p in head_parameters(model))
    return Trainable(body=sum(held.values()), head=head)
