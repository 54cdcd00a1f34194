"""Layouts: a sparse weight as its kept values and their positions.

| layout | positions of the values |
|---|---|
| dense | everywhere |
| bitmap | one bit a weight |
| csr | row pointers (int32) and column indices (int16, int32 from 2^15 columns on) |
| nm-packed | N of every M inputs: one number below C(M, N) for each group of M inputs, several |
|           | numbers to a word (`integer_coding`); a smaller group is filled with zeros |

Values are stored in row-major order of (out, in), unchanged or as codes (`bench.formats.quantize`).
A byte holds two codes of four bits. A zero is `== 0`, so −0.0 comes back as 0.0. All other values
come back bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.overrides import Quantizer
from bench.formats.integer_coding import (
    LARGEST,
    groups_of_numbers,
    number_groups,
    pack_digits,
    packed_bytes,
    unpack_digits,
)
from bench.formats.quantize import Quantized, dequantize, quantize
from bench.formats.safetensors_file import DTYPES, Entry
from bench.formats.zeros import Zeros

Layout = Literal["dense", "bitmap", "csr", "nm-packed"]

_CHUNK = 1 << 20  # elements of one step


class Matrix(BaseModel):
    """The storage of one weight in a file; the file's header holds it.

    Attributes:
        shape: (out, in).
        dtype: dtype of the weight, as a safetensors file names it.
        layout: layout of the values.
        count: number of values in the file.
        n: values in the file of every `m` inputs (nm-packed); 0 for other layouts.
        m: inputs of a group (nm-packed); 0 for other layouts.
        quantizer: quantizer of the values; None stores them unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int]
    dtype: Literal["F64", "F32", "F16", "BF16"]
    layout: Layout
    count: int = Field(ge=0)
    n: int = Field(default=0, ge=0)
    m: int = Field(default=0, ge=0, le=128)
    quantizer: Quantizer | None = None

    @model_validator(mode="after")
    def _possible(self) -> Matrix:
        rows, columns = self.shape
        if min(self.shape) < 1 or self.count > rows * columns:
            raise ValueError(f"{self.count} values of {rows} × {columns}")
        if self.layout == "dense" and self.count != rows * columns:
            raise ValueError(f"{self.count} values of {rows} × {columns}, dense")
        if self.layout == "nm-packed" and not (
            0 < self.n < self.m
            and columns % self.m == 0
            and self.count * self.m == rows * columns * self.n
            and math.comb(self.m, self.n) <= LARGEST
        ):
            raise ValueError(f"{self.count} values of {rows} × {columns}, {self.n}:{self.m}")
        return self

    @property
    def tensors(self) -> dict[str, Entry]:
        """Names, dtypes and shapes of the tensors that store the weight."""
        rows, columns = self.shape
        entries = {}
        if self.layout == "bitmap":
            entries["bitmap"] = _digits(rows * columns, 2)
        elif self.layout == "csr":
            entries["rows"] = Entry("I32", (rows + 1,))
            entries["columns"] = Entry("I16" if columns <= 2**15 else "I32", (self.count,))
        elif self.layout == "nm-packed":
            entries["groups"] = _digits(rows * columns // self.m, math.comb(self.m, self.n))
        if self.quantizer is None:
            return entries | {"values": Entry(self.dtype, (self.count,))}
        groups = self.quantizer.groups(columns)
        entries["values"] = _digits(self.count, self.quantizer.levels)
        entries["scales"] = Entry("F16", (rows, groups))
        if self.quantizer.asymmetric:
            entries["zeros"] = _digits(rows * groups, self.quantizer.levels)
        return entries

    @property
    def nbytes(self) -> int:
        """Number of bytes of all these tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())


def dense(shape: tuple[int, int], dtype: str, quantizer: Quantizer | None = None) -> Matrix:
    """Returns the storage of all elements of a weight, zeros included.

    Args:
        shape: (out, in).
        dtype: dtype of the weight, as a safetensors file names it.
        quantizer: makes codes of the values; None stores them unchanged.
    """
    return Matrix(
        shape=shape,
        dtype=dtype,  # type: ignore[arg-type]
        layout="dense",
        count=shape[0] * shape[1],
        quantizer=quantizer,
    )


def lay_out(zeros: Zeros, layout: Layout | None, quantizer: Quantizer | None = None) -> Matrix:
    """Returns the storage of a weight with these zeros.

    Args:
        zeros: facts about the weight.
        layout: the layout. None chooses nm-packed for a weight with an N:M pattern, else bitmap,
            but dense where that is smaller. Without a pattern, nm-packed becomes dense.
        quantizer: makes codes of the values; None stores them unchanged.
    """
    size = zeros.shape[0] * zeros.shape[1]
    common: dict[str, Any] = {"shape": zeros.shape, "dtype": zeros.dtype, "quantizer": quantizer}
    whole = dense(zeros.shape, zeros.dtype, quantizer)
    if layout in ("nm-packed", None) and zeros.nm:
        n, m = zeros.nm
        packed = Matrix(layout="nm-packed", count=size // m * n, n=n, m=m, **common)
    elif layout in ("nm-packed", "dense"):
        return whole
    else:
        packed = Matrix(layout=layout or "bitmap", count=zeros.nonzero, **common)
    return whole if layout is None and whole.nbytes < packed.nbytes else packed


def pack(weight: Tensor, matrix: Matrix) -> dict[str, Tensor]:
    """Packs `weight` (out, in) into the tensors that `matrix` describes.

    Raises:
        BenchError: the weight cannot be quantized.
    """
    keep = None if matrix.layout == "dense" else weight != 0
    tensors = {}
    if matrix.layout == "bitmap":
        assert keep is not None
        tensors["bitmap"] = pack_digits(keep.flatten().to(torch.uint8), 2)
    elif matrix.layout == "csr":
        assert keep is not None
        ends = keep.sum(dim=1).cumsum(0)
        tensors["rows"] = F.pad(ends, (1, 0)).to(torch.int32)
        index = torch.arange(matrix.shape[1], device=weight.device)
        dtype = DTYPES[matrix.tensors["columns"].dtype]
        tensors["columns"] = _select(index.to(dtype).expand_as(keep), keep)
    elif matrix.layout == "nm-packed":
        assert keep is not None
        keep = _filled(keep, matrix.n, matrix.m)
        numbers = number_groups(keep.view(-1, matrix.m), matrix.n)
        tensors["groups"] = pack_digits(numbers, math.comb(matrix.m, matrix.n))
    if matrix.quantizer is None:
        return tensors | {"values": _select(weight, keep)}
    quantized = quantize(weight, matrix.quantizer)
    tensors["values"] = pack_digits(_select(quantized.codes, keep), matrix.quantizer.levels)
    tensors["scales"] = quantized.scales
    if quantized.zeros is not None:
        tensors["zeros"] = pack_digits(quantized.zeros.flatten(), matrix.quantizer.levels)
    return tensors


def unpack(tensors: Mapping[str, Tensor], matrix: Matrix) -> Tensor:
    """Unpacks a weight: (out, in), in its own dtype.

    Args:
        tensors: tensors with the shapes that `matrix` describes.
        matrix: storage of the weight.

    Raises:
        BenchError: positions or scales are not possible.
    """
    keep = _positions(tensors, matrix)
    if matrix.quantizer is None:
        return _place(tensors["values"], keep, matrix)
    quantizer, (rows, columns) = matrix.quantizer, matrix.shape
    scales, zeros = tensors["scales"], None
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise BenchError("a scale is negative or not finite")
    if quantizer.asymmetric:
        groups = quantizer.groups(columns)
        zeros = unpack_digits(tensors["zeros"], quantizer.levels, rows * groups).view(rows, -1)
    codes = _place(unpack_digits(tensors["values"], quantizer.levels, matrix.count), keep, matrix)
    weight = dequantize(Quantized(codes, scales, zeros), quantizer)
    if keep is not None:
        weight.masked_fill_(~keep, 0.0)
    return weight.to(DTYPES[matrix.dtype])


def _positions(tensors: Mapping[str, Tensor], matrix: Matrix) -> Tensor | None:
    """Returns a mask (out, in) of the `matrix.count` elements with a value; None for all.

    Raises:
        BenchError: the positions do not fit `matrix`.
    """
    rows, columns = matrix.shape
    if matrix.layout == "dense":
        return None
    if matrix.layout == "bitmap":
        keep = unpack_digits(tensors["bitmap"], 2, rows * columns).bool()
        if (ones := int(keep.count_nonzero())) != matrix.count:
            raise BenchError(f"the bitmap marks {ones} weights, there are {matrix.count} values")
        return keep.view(rows, columns)
    if matrix.layout == "csr":
        pointers = tensors["rows"].long()
        widths = pointers.diff()
        if pointers[0] != 0 or pointers[-1] != matrix.count or bool((widths < 0).any()):
            raise BenchError(f"row pointers do not rise from 0 to {matrix.count}")
        index = tensors["columns"].long()
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < columns):
            raise BenchError(f"a column index is not below {columns}")
        index += torch.arange(rows, device=index.device).repeat_interleave(widths) * columns
        if bool((index.diff() <= 0).any()):
            raise BenchError("column indices do not rise within a row")
        keep = torch.zeros(rows * columns, dtype=torch.bool, device=index.device)
        return keep.index_fill_(0, index, True).view(rows, columns)
    groups = rows * columns // matrix.m
    numbers = unpack_digits(tensors["groups"], math.comb(matrix.m, matrix.n), groups)
    return groups_of_numbers(numbers, matrix.n, matrix.m).view(rows, columns)


def _digits(count: int, base: int) -> Entry:
    return Entry("U8", (packed_bytes(count, base),))


def _filled(keep: Tensor, n: int, m: int) -> Tensor:
    """Fills `keep` up to exactly `n` of every `m` inputs, the first free inputs first."""
    groups = keep.view(-1, m)
    free = ~groups
    lacking = n - groups.sum(dim=1, keepdim=True, dtype=torch.uint8)
    filling = free & (free.cumsum(dim=1, dtype=torch.uint8) <= lacking)
    return (groups | filling).view_as(keep)


def _select(values: Tensor, keep: Tensor | None) -> Tensor:
    """Returns the kept values in row-major order, (count,)."""
    if keep is None:
        return values.flatten()
    # In chunks, because the indices of a selection take many bytes an element.
    rows = max(1, _CHUNK // values.shape[1])
    pairs = zip(values.split(rows), keep.split(rows), strict=True)
    return torch.cat([part.masked_select(kept) for part, kept in pairs])


def _place(values: Tensor, keep: Tensor | None, matrix: Matrix) -> Tensor:
    """Returns (out, in) with the kept values in their positions and zeros elsewhere."""
    if keep is None:
        return values.view(matrix.shape)
    return values.new_zeros(matrix.shape).masked_scatter_(keep, values)
