"""A folder with a packed model: config, tokenizer and `packed.safetensors`.

The file holds each target's weight, and the embeddings' where they are quantized, as the tensors
of `bench.formats.layouts`, named after the module, and everything else as it is; its header's
metadata
say in JSON how each weight lies there. Reading trusts neither file nor config: both must tell of
the same model, on the meta device, before memory is taken for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from bench.core.errors import BenchError, one_line
from bench.formats import file_sizes
from bench.formats.layouts import Matrix, pack, unpack
from bench.formats.safetensors_file import (
    DTYPES,
    Entry,
    File,
    broken,
    dtype_name,
    read_header,
    write,
)
from bench.sources.architectures import saved_class, saved_config
from bench.weights import side_branch, slicing
from bench.weights.targets import Target, embedding_tables, normal_form, prunable
from bench.weights.unstacked import unstack

FILE = "packed.safetensors"

_KEY = "sparsebench"  # of the header's metadata
_EXPANSION = 1024  # bytes of weights that a byte of the file may stand for
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

Shape = tuple[int, ...]
Fetch = Callable[[str, Tensor], Tensor]
"""(name in the state dict, the model's tensor) → the weights, where the model has none itself."""


class Header(BaseModel):
    """What a packed file says of itself.

    Attributes:
        dtype: the model's, as a safetensors file names it.
        matrices: how each target's weight lies in the file, by the module's name; embeddings may
            be among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    dtype: Literal["F64", "F32", "F16", "BF16"]
    matrices: dict[str, Matrix]


def entries_of(
    model: PreTrainedModel, matrices: Mapping[str, Matrix], dtype: torch.dtype | None = None
) -> dict[str, Entry]:
    """All tensors of the file; floats that are not packed are stored in `dtype`, if one is given.

    The sum of their `nbytes` is the file's size but for its header.
    """
    found = {
        _name(name, part): entry
        for name, matrix in matrices.items()
        for part, entry in matrix.tensors.items()
    }
    for name, tensor in file_sizes.rest(model, matrices):
        found[name] = Entry(dtype_name(_cast(tensor.dtype, dtype)), tuple(tensor.shape))
    return found


def taken_by(owner: str, entries: Mapping[str, Entry]) -> int:
    """Bytes of a module's weight in a file, packed or not."""
    weight = f"{owner}.weight"
    return sum(e.nbytes for n, e in entries.items() if n == weight or n.startswith(f"{weight}."))


def own(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself: a model that lies in memory."""
    return tensor.detach()


def weight_of(target: Target, fetch: Fetch) -> Tensor:
    """A target's weight as contiguous (out, in)."""
    return normal_form(fetch(f"{target.name}.weight", target.stored), target.transposed)


def save(
    model: PreTrainedModel,
    matrices: Mapping[str, Matrix],
    folder: Path,
    dtype: torch.dtype | None = None,
    fetch: Fetch = own,
) -> None:
    """Writes the weights, of which one at a time is in memory a second time.

    Args:
        model: a finished model.
        matrices: how each target's weight is stored, and which embeddings' weights.
        folder: where to.
        dtype: of everything that is not packed; by default its own.
        fetch: where the weights come from, for a model on the meta device.

    Raises:
        BenchError: weights that cannot be quantized, or that the config does not tell of.
    """
    entries = entries_of(model, matrices, dtype)
    empty = skeleton(type(model), model.config, model.dtype, "meta", branches_of(entries))
    if odd := {n for n, _ in file_sizes.rest(empty)} ^ {n for n, _ in file_sizes.rest(model)}:
        raise BenchError(f"{min(odd)} is in the model or in what its config makes, not in both")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for target in _packed(model, matrices):
            for part, tensor in pack(weight_of(target, fetch), matrices[target.name]).items():
                yield _name(target.name, part), tensor
        for name, tensor in file_sizes.rest(model, matrices):
            yield name, fetch(name, tensor).to(_cast(tensor.dtype, dtype))

    header = Header.model_validate({"dtype": dtype_name(model.dtype), "matrices": matrices})
    metadata = {"format": "pt", _KEY: header.model_dump_json(exclude_defaults=True)}
    write(folder / FILE, entries, metadata, tensors())


def load_packed(folder: Path) -> PreTrainedModel:
    """Loads the model of a packed folder, in its own class and dtype and in eval mode.

    Raises:
        BenchError: what is there is damaged, or claims more than it holds.
    """
    file = read_header(folder / FILE)
    try:
        header = Header.model_validate_json(file.metadata.get(_KEY, ""))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise broken(file.path, f"{place} {first['msg']}") from None
    _check_depth(folder, file)
    config = saved_config(folder, str(folder))
    kind = saved_class(config, str(folder))
    dtype, branches = DTYPES[header.dtype], branches_of(file.entries)
    _check(file, header, skeleton(kind, config, dtype, "meta", branches))
    model = skeleton(kind, config, dtype, "cpu", branches)
    restore_generation(model, folder)
    # The largest tensors, embeddings, are among the rest: while one is there twice, most of the
    # model's memory is not yet in use.
    with torch.no_grad():
        for name, tensor in file_sizes.rest(model, header.matrices):
            tensor.copy_(file.read(name))
    for target in _packed(model, header.matrices):
        matrix = header.matrices[target.name]
        tensors = {part: file.read(_name(target.name, part)) for part in matrix.tensors}
        try:
            target.write(unpack(tensors, matrix))
        except BenchError as error:
            raise broken(file.path, f"{target.name}: {error}") from None
    model.eval()
    return model


def skeleton(
    kind: Any,
    config: Any,
    dtype: torch.dtype,
    device: str,
    branches: Mapping[str, tuple[Shape, Shape]] | None = None,
    sliced: bool = True,
) -> PreTrainedModel:
    """The model that a config tells of, tied and of the right shapes, its weights not set.

    Args:
        kind: the model's class.
        config: the model's; it stays as it is.
        dtype: of all weights.
        device: `meta` takes no memory.
        branches: the modules with a branch, and the shapes of its two matrices.
        sliced: whether to take out what `config.sliced` says is gone.

    Raises:
        BenchError: the config makes no model, or none with these branches.
    """
    config = copy.deepcopy(config)
    try:
        with no_init_weights(), torch.device(device):
            model: PreTrainedModel = kind._from_config(config, dtype=dtype)
            model.tie_weights()
            unstack(model)
            if getattr(config, "sliced", None) and sliced:
                slicing.shrink(model)
            for owner, shapes in (branches or {}).items():
                down, up = (torch.empty(shape, dtype=dtype) for shape in shapes)
                side_branch.add(model.get_submodule(owner), down, up)
    except BenchError:
        raise
    except Exception as error:  # transformers raises anything on a foreign config
        reason = one_line(error)
        raise BenchError(f"{kind.__name__}: its config makes no model: {reason}") from None
    return model


def restore_generation(model: PreTrainedModel, folder: Path) -> None:
    """Gives a model the settings for generating text that were saved with it, if there are any."""
    if model.can_generate() and (folder / "generation_config.json").is_file():
        try:
            found = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # as with a foreign config
            reason = one_line(error)
            raise BenchError(f"{folder}: no usable generation_config.json: {reason}") from None
        model.generation_config = found


def branches_of(entries: Mapping[str, Entry]) -> dict[str, tuple[Shape, Shape]]:
    """The modules with a branch among a file's tensors, and the shapes of its two matrices."""
    return {
        owner: (entries[down].shape, entries[up].shape)
        for owner, (down, up) in side_branch.owners(entries).items()
        if up in entries
    }


def _check(file: File, header: Header, empty: PreTrainedModel) -> None:
    """Holds a file against the model that its config makes, on the meta device."""
    shapes = {target.name: target.shape for target in _packed(empty, header.matrices)}
    for name in sorted(shapes.keys() | header.matrices.keys()):
        packed = header.matrices[name].shape if name in header.matrices else None
        made = shapes.get(name)
        if packed != made:
            raise broken(file.path, f"{name!r} is {packed} in the header, {made} in the config")
    expected = entries_of(empty, header.matrices)
    for name, tensor in file_sizes.rest(empty, header.matrices):
        if name in file.entries and tensor.is_floating_point():
            # Its dtype was an option of the export.
            expected[name] = Entry(file.entries[name].dtype, expected[name].shape)
    for name in sorted(expected.keys() | file.entries.keys()):
        found, wanted = file.entries.get(name), expected.get(name)
        if found != wanted:
            raise broken(file.path, f"{name!r} is {found}, expected {wanted}")
    # CSR can stand for any number of zeros.
    size = sum(t.numel() * t.element_size() for t in empty.state_dict().values())
    if size > _EXPANSION * file.size:
        raise broken(file.path, f"its {file.size} bytes claim to hold {size} bytes of weights")


def _check_depth(folder: Path, file: File) -> None:
    """Refuses a config with more layers than the file has tensors, before they are made."""
    try:
        tree = json.loads((folder / "config.json").read_bytes())
        depths = [tree.get(key) for key in _DEPTHS]
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        reason = one_line(error)
        raise BenchError(f"{folder}: no usable config.json: {reason}") from None
    if any(isinstance(depth, int) and depth > len(file.entries) for depth in depths):
        raise BenchError(f"{folder}: its config tells of more layers than the file has tensors")


def _packed(model: PreTrainedModel, matrices: Mapping[str, Matrix]) -> list[Target]:
    """What is packed: every target, and the embeddings that have a matrix."""
    return [
        *prunable(model),
        *(table for table in embedding_tables(model) if table.name in matrices),
    ]


def _cast(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and own.is_floating_point else own


def _name(target: str, part: str) -> str:
    return f"{target}.weight.{part}"
