"""What a model takes on disk in each format (METHODS.md §4.2): counted, nothing is packed.

The targets are packed; everything else (embeddings, norms, biases, heads, branches) is stored as
it is, tied tensors once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from bench import branch, slicing
from bench.api import BenchError, Quantizer
from bench.packing import GROUPS, Layout, lay, zeros_of
from bench.record import Bytes
from bench.targets import prunable

LAYOUTS: tuple[Layout, ...] = ("bitmap", "csr", "nm-packed")
WIDTHS = ("int8", "int4")
PLAIN = "hf"


@dataclass(frozen=True)
class Format:
    """How the targets' weights are stored.

    Attributes:
        layout: None leaves it to the zeros (`bench.packing.lay`).
        quantizer: None keeps the values as they are.
    """

    layout: Layout | None
    quantizer: Quantizer | None


def format_of(name: str, group: int = 64, asymmetric: bool = False) -> Format:
    """A format by name: `hf`, a layout, an integer width, or both as `bitmap+int4`.

    Raises:
        BenchError: no such format.
    """
    if name == PLAIN:
        return Format("dense", None)
    parts = name.split("+")
    layouts = [layout for layout in LAYOUTS if layout in parts]
    widths = [width for width in WIDTHS if width in parts]
    if sorted(parts) != sorted([*layouts, *widths]) or max(len(layouts), len(widths)) > 1:
        known = ", ".join([PLAIN, *LAYOUTS, *WIDTHS])
        raise BenchError(f"unknown format {name!r}: {known}, or both as bitmap+int4")
    quantizer = None
    if widths:
        quantizer = Quantizer.model_validate(
            {"name": widths[0], "group": group, "asymmetric": asymmetric}
        )
    return Format(layouts[0] if layouts else None, quantizer)


def groups_of(pattern: str) -> Sequence[int]:
    """The group sizes M to look for in a model of this pattern."""
    match = re.fullmatch(r"\d+:(\d+)", pattern)
    return (int(match[1]),) if match else GROUPS


def rest(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What is stored beside the targets' weights, tied tensors once."""
    # By the parameter, not by its memory: on the meta device there is none.
    seen = {id(target.module.weight) for target in prunable(model)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def nbytes(tensors: Iterator[tuple[str, Tensor]]) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for _, t in tensors)


def bytes_of(model: PreTrainedModel, pattern: str, quantizer: Quantizer | None) -> Bytes:
    """The model's bytes in every format that fits it.

    Args:
        model: a finished one, its parameters plain.
        pattern: the cell's.
        quantizer: what its weights were rounded to; then this is the one format.
    """
    targets = prunable(model)
    around = nbytes(rest(model))
    dense = around + sum(t.stored.numel() * t.stored.element_size() for t in targets)
    looked = [zeros_of(target.weight, groups_of(pattern)) for target in targets]

    def packed(layout: Layout | None, codes: Quantizer | None = None) -> int:
        return around + sum(lay(zeros, layout, codes).nbytes for zeros in looked)

    if quantizer is not None:
        size = packed(None, quantizer)
        return Bytes(dense=dense, stored=size, formats={quantizer.name: size})
    found: dict[str, int] = {
        layout: packed(layout)
        for layout in LAYOUTS
        if layout != "nm-packed" or any(zeros.nm for zeros in looked)
    }
    if removed := _removable(model):
        found["sliced"] = dense - removed * targets[0].stored.element_size()
    stored = min(dense, *found.values())
    found |= {name: packed(None, Quantizer.model_validate({"name": name})) for name in WIDTHS}
    return Bytes(dense=dense, stored=stored, formats=found)


def _removable(model: PreTrainedModel) -> int:
    """Elements in dead heads and neurons; none where a branch adds to them, or of unknown make."""
    if any(isinstance(module, branch.Branch) for module in model.modules()):
        return 0
    try:
        return slicing.removable(model)
    except BenchError:
        return 0
