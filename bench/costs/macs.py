"""Counts the multiply-adds of a finished model's forward pass, and those that its zeros save."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Mapping

from transformers import PreTrainedModel

from bench.core.pattern import DENSE, Pattern
from bench.core.record_parts import Macs
from bench.costs.deployed import SLICED, slice_dead_units
from bench.costs.products import forward_macs
from bench.weights.blocks import blocks
from bench.weights.patterns import density, halved
from bench.weights.targets import head_modules, prunable


def count_macs(
    model: PreTrainedModel, length: int, pattern: Pattern = DENSE, kernel: bool = False
) -> Macs:
    """Counts the multiply-adds of one forward pass of one sequence (methods/README.md, "Costs").

    Linear layers, attention products (q·kᵀ, p·v) and the head count; embeddings are 0. The head is
    also stated apart. `effective` scales the products of each target by its density. `realizable`
    leaves out the products that the device can skip.

    Args:
        model: the exported model.
        length: tokens of the sequence.
        pattern: the cell's pattern; blocks, heads and neurons are taken out of a copy.
        kernel: whether the device has a kernel for 2:4 matrices (`has_kernel`).

    Raises:
        BenchError: the model cannot run without weights, or a product has no count.
    """
    macs = forward_macs(model, length)
    products = by_target(model, macs)
    saved = sum(products[t.name] * (1.0 - density(t)) for t in prunable(model))
    realizable = macs[""]
    if kernel:
        realizable -= spared_macs(model, macs, pattern)
    if pattern.removes_units:
        sliced = copy.deepcopy(model)
        if slice_dead_units(sliced) == SLICED:
            realizable = forward_macs(sliced, length)[""]
    return Macs(
        dense=macs[""],
        effective=round(macs[""] - saved),
        head=head_macs(model, macs),
        realizable=realizable,
        tokens=length,
    )


def by_target(model: PreTrainedModel, macs: Mapping[str, int]) -> dict[str, float]:
    """Returns the multiply-adds of each target's weight, without its side branch.

    The branch has a count of its own. The weights decide which expert a token goes to, so the
    experts of a layer share its products evenly: matrices of one shape in one block whose
    names differ in a number.

    Args:
        model: the model.
        macs: its multiply-adds by module.
    """
    place = {}
    for number, block in enumerate(blocks(model)):
        for name, module in block.named_modules():
            place[id(module)] = number, re.sub(r"\d+", "*", name)
    alike = defaultdict(list)
    for target in prunable(model):
        alike[place[id(target.module)], target.shape].append(target.name)
    return {
        name: sum(macs.get(other, 0) for other in names) / len(names)
        for names in alike.values()
        for name in names
    }


def spared_macs(model: PreTrainedModel, macs: Mapping[str, int], pattern: Pattern) -> int:
    """Returns the multiply-adds that kernels for 2:4 matrices spare."""
    products = by_target(model, macs)
    return int(sum(products[t.name] for t in halved(model, pattern))) // 2


def head_macs(model: PreTrainedModel, macs: Mapping[str, int]) -> int:
    """Returns the multiply-adds of the model's head."""
    return sum(macs.get(name, 0) for name in head_modules(model))
