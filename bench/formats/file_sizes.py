"""Computes a model's size on disk in each format (methods/README.md, "Costs"); packs nothing.

Targets are packed, and embeddings where they are quantized. Everything else (norms, biases, heads,
branches) is stored unchanged. Tied tensors are stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.overrides import Quantization, Quantizer
from bench.core.pattern import Pattern
from bench.core.record_parts import Bytes, EmbeddingBytes
from bench.formats.layouts import Layout, Matrix, dense, lay_out
from bench.formats.safetensors_file import dtype_name
from bench.formats.zeros import GROUPS, zeros_of
from bench.weights import dead
from bench.weights.targets import embedding_tables, prunable

LAYOUTS: tuple[Layout, ...] = ("bitmap", "csr", "nm-packed")
WIDTHS = ("int8", "int4")
PLAIN = "hf"


@dataclass(frozen=True)
class Format:
    """A storage format of a model.

    Attributes:
        layout: layout of the targets' weights; with None the zeros decide (`layouts.lay_out`).
        quantization: quantization of the values; None keeps them.
    """

    layout: Layout | None
    quantization: Quantization | None


def format_of(
    name: str, group: int = 64, asymmetric: bool = False, embeddings: str | None = None
) -> Format:
    """Parses the name of a format: `hf`, a layout, an integer width, or both as `bitmap+int4`.

    Args:
        name: the format.
        group: number of neighbouring inputs that share a scale.
        asymmetric: whether each group has its own zero point.
        embeddings: integer width of the embeddings; None does not quantize them.

    Raises:
        BenchError: there is no such format, or only the embeddings would be quantized.
    """
    parts = name.split("+")
    layouts = [layout for layout in LAYOUTS if layout in parts]
    widths = [width for width in WIDTHS if width in parts]
    odd = sorted(parts) != sorted([*layouts, *widths]) or max(len(layouts), len(widths)) > 1
    if odd and name != PLAIN:
        known = ", ".join([PLAIN, *LAYOUTS, *WIDTHS])
        raise BenchError(
            f"unknown format {name!r}: use {known}, or a layout and a width as bitmap+int4"
        )
    if embeddings and not widths:
        raise BenchError(f"--embeddings needs a format with {' or '.join(WIDTHS)}, not {name}")
    quantizers = [
        Quantizer.model_validate({"name": width, "group": group, "asymmetric": asymmetric})
        for width in (*widths, embeddings)
        if width
    ]
    layout = "dense" if name == PLAIN else layouts[0] if layouts else None
    return Format(layout, Quantization(*quantizers) if quantizers else None)


def groups_of(pattern: Pattern | None) -> Sequence[int]:
    """Returns the group sizes M to look for in a model of this pattern."""
    return (pattern.n_m[1],) if pattern and pattern.n_m else GROUPS


def rounded_tables(model: PreTrainedModel, quantizer: Quantizer | None) -> dict[str, Matrix]:
    """Returns how each embedding is packed, by module name; empty without a quantizer."""
    if quantizer is None:
        return {}
    return {
        table.name: dense(table.shape, dtype_name(table.stored.dtype), quantizer)
        for table in embedding_tables(model)
    }


def rest(model: PreTrainedModel, packed: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yields all tensors except the weights of the modules `packed`; tied tensors come once."""
    # Compare parameters, not their memory: tensors on the meta device have none.
    seen = {id(model.get_submodule(name).weight) for name in packed}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the number of bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_of(model: PreTrainedModel, pattern: Pattern, quantization: Quantization | None) -> Bytes:
    """Computes the model's bytes in each format that fits it.

    Args:
        model: a finished model with plain parameters.
        pattern: the cell's pattern.
        quantization: the quantization that rounded the model; it is then the only format.
    """
    targets = prunable(model)
    whole = total_bytes(tensor for _, tensor in rest(model))
    around = whole - total_bytes(target.stored for target in targets)
    zeros_by_target = [zeros_of(target.weight, groups_of(pattern)) for target in targets]
    embedded = total_bytes(table.stored for table in embedding_tables(model))

    def packed(layout: Layout | None, codes: Quantizer | None = None) -> int:
        return around + sum(lay_out(zeros, layout, codes).nbytes for zeros in zeros_by_target)

    if quantization is not None:
        size = packed(None, quantization.weights)
        rounded = rounded_tables(model, quantization.embeddings).values()
        kept = sum(table.nbytes for table in rounded) if rounded else embedded
        size += kept - embedded
        return Bytes(
            dense=whole,
            stored=size,
            formats={quantization.weights.name: size},
            embeddings=EmbeddingBytes(dense=embedded, stored=kept),
        )
    formats: dict[str, int] = {
        layout: packed(layout)
        for layout in LAYOUTS
        if layout != "nm-packed" or any(zeros.nm for zeros in zeros_by_target)
    }
    if removed := _removable(model):
        formats["sliced"] = whole - removed * targets[0].stored.element_size()
    stored = min(whole, *formats.values())
    formats |= {name: packed(None, Quantizer.model_validate({"name": name})) for name in WIDTHS}
    both = EmbeddingBytes(dense=embedded, stored=embedded)
    return Bytes(dense=whole, stored=stored, formats=formats, embeddings=both)


def _removable(model: PreTrainedModel) -> int:
    """Counts the elements of what is dead; 0 where the model cannot be sliced."""
    try:
        return dead.removable(model)
    except BenchError:
        return 0
