"""safetensors files, written and read one tensor at a time, trusted in nothing.

The layout is the safetensors format's: eight bytes with the header's length, a JSON header with
every tensor's dtype, shape and place, then the tensors without gaps, wide dtypes first so that
each is aligned. A file of ours is read by any safetensors library; files are read here so that
every claim is held against the file's size before a byte is allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core.errors import BenchError

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the dtype as a safetensors file names it.

    Raises:
        BenchError: it has no name there.
    """
    if dtype not in _NAMES:
        raise BenchError(f"{dtype} cannot be stored")
    return _NAMES[dtype]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its dtype as the file names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class File:
    """A file whose header holds together.

    Attributes:
        entries: its tensors by name.
        starts: where each begins, in bytes from the file's start.
        metadata: its text fields.
        size: of the whole file, in bytes.
    """

    path: Path
    entries: Mapping[str, Entry]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]
    size: int

    def read(self, name: str) -> Tensor:
        """Reads one tensor, on the CPU.

        Raises:
            BenchError: the file has become shorter or cannot be read.
        """
        entry = self.entries[name]
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.starts[name])
                view, done = buffer.numpy().data, 0
                while got := file.readinto(view[done:]):
                    done += got
        except OSError as error:
            raise broken(self.path, str(error.strerror or error)) from None
        if done < entry.nbytes:
            raise broken(self.path, f"{name} ends early")
        if entry.dtype == "BOOL":
            return (buffer != 0).view(entry.shape)  # any other byte is no bool to torch
        return buffer.view(DTYPES[entry.dtype]).view(entry.shape)


def write(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes a file of which only one tensor is in memory at a time.

    Args:
        path: the file.
        entries: what there will be.
        metadata: text fields.
        tensors: every entry's tensor once, in any order.

    Raises:
        OSError: as the file system gives it.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    starts, place = {}, 0
    for name in sorted(entries, key=lambda n: (-DTYPES[entries[n].dtype].itemsize, n)):
        entry, starts[name] = entries[name], place
        place += entry.nbytes
        spans = {"shape": list(entry.shape), "data_offsets": [starts[name], place]}
        header[name] = {"dtype": entry.dtype, **spans}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            entry = Entry(dtype_name(tensor.dtype), tuple(tensor.shape))
            assert entries[name] == entry, f"{name}: {entry} is not the {entries[name]} announced"
            file.seek(first + starts.pop(name))
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            file.write(data.numpy().data)
        assert not starts, f"not written: {sorted(starts)[:3]}"
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> File:
    """Reads the header of a file and checks each of its claims against the file's size.

    Raises:
        BenchError: no such file, or one that is cut off or damaged.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(size - 8, _LONGEST_HEADER):
                raise broken(path, "its header does not end")
            tree = json.loads(file.read(length))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise broken(path, "its header is no JSON") from None
    if not isinstance(tree, dict):
        raise broken(path, "its header is no JSON object")
    metadata = tree.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise broken(path, "its metadata are no texts")
    first = 8 + length
    entries, spans = {}, {}
    for name, claim in tree.items():
        entries[name], spans[name] = _entry(path, name, claim)
    end = 0
    for name in sorted(spans, key=lambda n: spans[n]):
        if spans[name][0] != end:
            raise broken(path, f"{name!r} does not begin where the tensor before it ends")
        end = spans[name][1]
    if first + end != size:
        raise broken(path, f"its tensors take {first + end} bytes, the file has {size}")
    starts = {name: first + span[0] for name, span in spans.items()}
    return File(path, entries, starts, metadata, size)


def _entry(path: Path, name: str, claim: Any) -> tuple[Entry, tuple[int, int]]:
    """Returns an entry of the header and the span of its bytes, which have the same length."""
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken(path, f"{name!r} has no dtype, shape and data_offsets")
    dtype, shape, span = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise broken(path, f"{name!r} has an unknown dtype")
    if not (_naturals(shape) and len(shape) <= 8 and _naturals(span) and len(span) == 2):
        raise broken(path, f"{name!r} has no shape and place")
    entry = Entry(dtype, tuple(shape))
    if entry.nbytes != span[1] - span[0]:
        raise broken(path, f"{name!r} does not fill its place")
    return entry, (span[0], span[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def broken(path: Path, reason: str) -> BenchError:
    """Makes the error of a file that is not what it claims to be."""
    # A name in a foreign header may hold anything: one line stays one line.
    return BenchError(f"{path}: damaged file: {' '.join(reason.split())[:300]}")
