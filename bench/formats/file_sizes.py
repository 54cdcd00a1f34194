"""What a model takes on disk in each format: counted, nothing is packed.

The targets are packed, and embeddings too where they are quantized; everything else (norms,
biases, heads, branches) is stored as it is, tied tensors once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.overrides import Quantization, Quantizer
from bench.core.pattern import Pattern
from bench.core.record import Bytes, EmbeddingBytes
from bench.formats.layouts import GROUPS, Layout, Matrix, dense, lay, zeros_of
from bench.formats.safetensors_file import dtype_name
from bench.weights import slicing
from bench.weights.targets import embedding_tables, prunable

LAYOUTS: tuple[Layout, ...] = ("bitmap", "csr", "nm-packed")
WIDTHS = ("int8", "int4")
PLAIN = "hf"


@dataclass(frozen=True)
class Format:
    """How a model is stored.

    Attributes:
        layout: of the targets' weights; None leaves it to the zeros (`bench.formats.layouts.lay`).
        quantization: None keeps the values as they are.
    """

    layout: Layout | None
    quantization: Quantization | None


def format_of(
    name: str, group: int = 64, asymmetric: bool = False, embeddings: str | None = None
) -> Format:
    """Returns a format by name: `hf`, a layout, an integer width, or both as `bitmap+int4`.

    Args:
        name: the format.
        group: neighbouring inputs that share a scale.
        asymmetric: whether every group has a zero point.
        embeddings: width of their integers; None stores them as they are.

    Raises:
        BenchError: no such format, or integers for embeddings alone.
    """
    parts = name.split("+")
    layouts = [layout for layout in LAYOUTS if layout in parts]
    widths = [width for width in WIDTHS if width in parts]
    odd = sorted(parts) != sorted([*layouts, *widths]) or max(len(layouts), len(widths)) > 1
    if odd and name != PLAIN:
        known = ", ".join([PLAIN, *LAYOUTS, *WIDTHS])
        raise BenchError(f"unknown format {name!r}: {known}, or both as bitmap+int4")
    if embeddings and not widths:
        raise BenchError(f"--embeddings is for the formats {' and '.join(WIDTHS)}, not for {name}")
    made = [
        Quantizer.model_validate({"name": width, "group": group, "asymmetric": asymmetric})
        for width in (*widths, embeddings)
        if width
    ]
    layout = "dense" if name == PLAIN else layouts[0] if layouts else None
    return Format(layout, Quantization(*made) if made else None)


def groups_of(pattern: Pattern | None) -> Sequence[int]:
    """Returns the group sizes M to look for in a model of this pattern."""
    return (pattern.n_m[1],) if pattern and pattern.n_m else GROUPS


def rounded_tables(model: PreTrainedModel, quantizer: Quantizer | None) -> dict[str, Matrix]:
    """Returns how the embeddings are packed, by module; nothing without a quantizer."""
    if quantizer is None:
        return {}
    return {
        table.name: dense(table.shape, dtype_name(table.stored.dtype), quantizer)
        for table in embedding_tables(model)
    }


def rest(model: PreTrainedModel, packed: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yields what is stored beside the weights of the modules `packed`, tied tensors once."""
    # By the parameter, not by its memory: on the meta device there is none.
    seen = {id(model.get_submodule(name).weight) for name in packed}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_of(model: PreTrainedModel, pattern: Pattern, quantization: Quantization | None) -> Bytes:
    """Counts the model's bytes in every format that fits it.

    Args:
        model: a finished one, its parameters plain.
        pattern: the cell's.
        quantization: what it was rounded to; then this is the one format.
    """
    targets = prunable(model)
    whole = nbytes(tensor for _, tensor in rest(model))
    around = whole - nbytes(target.stored for target in targets)
    looked = [zeros_of(target.weight, groups_of(pattern)) for target in targets]
    embedded = nbytes(table.stored for table in embedding_tables(model))

    def packed(layout: Layout | None, codes: Quantizer | None = None) -> int:
        return around + sum(lay(zeros, layout, codes).nbytes for zeros in looked)

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
    found: dict[str, int] = {
        layout: packed(layout)
        for layout in LAYOUTS
        if layout != "nm-packed" or any(zeros.nm for zeros in looked)
    }
    if removed := _removable(model):
        found["sliced"] = whole - removed * targets[0].stored.element_size()
    stored = min(whole, *found.values())
    found |= {name: packed(None, Quantizer.model_validate({"name": name})) for name in WIDTHS}
    both = EmbeddingBytes(dense=embedded, stored=embedded)
    return Bytes(dense=whole, stored=stored, formats=found, embeddings=both)


def _removable(model: PreTrainedModel) -> int:
    """Elements in dead heads and neurons; none where these cannot be told or taken out."""
    try:
        return slicing.removable(model)
    except BenchError:
        return 0
