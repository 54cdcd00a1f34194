"""Writes a model as a folder like the one that it came from: only the weights change.

The config, the tokenizer and all other small files are copied byte by byte, because transformers
would write them in the form of its own version, which earlier versions misread. Where the config
has to change (a slice, a new head), its JSON gets those keys and keeps the others. The weights keep
the names, dtypes and shards of the folder's files.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.core.errors import BenchError
from bench.formats.file_sizes import rest
from bench.formats.safetensors_file import DTYPES, Entry, File, dtype_name, read_header, write
from bench.sources import checkpoints
from bench.sources.architectures import saved_config
from bench.sources.saving import saved_form
from bench.weights import side_branch
from bench.weights.blocks import stack

log = logging.getLogger(__name__)

_WEIGHTS = (
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .ggml .onnx .onnx_data .tflite .ot .npz"
).split()
_SMALL = 256 * 2**20
"""Bytes; the largest tokenizers take 40 MB."""

_OF_THE_RUN = {"dtype", "torch_dtype", "transformers_version"}
"""Keys in which the config of a loaded model always differs from its file."""


def write_settings(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase | None, source: Path | None, out: Path
) -> None:
    """Writes all but the weights.

    Args:
        model: what is written beside them.
        tok: its tokenizer; used only where there is no source.
        source: the folder that the model came from, whose small files are copied. A random model
            has none.
        out: an empty folder.
    """
    if source is None:
        if tok is not None:
            tok.save_pretrained(out)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = model.dtype
        model.config.save_pretrained(out)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(out)
        return
    for file in _small_files(source):
        copy = out / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        if file.parent == source and file.name.endswith("config.json"):
            changes = _config_changes(model, source) if file.name == "config.json" else {}
            _edit(copy, changes, source)


def write_weights(model: PreTrainedModel, source: Path | None, out: Path) -> None:
    """Writes the weights.

    Args:
        model: with plain parameters.
        source: the folder that the model came from: its files' names, tensors' names and dtypes
            are kept, and so are tensors that the model does not use, but for those of blocks
            that it has lost. Without one, or if it is a packed folder, there is one file and the
            names are transformers'.
        out: a folder.

    Raises:
        BenchError: the model has a parameter that the source has no name for; or as `saved_form`.
    """
    with saved_form(model):
        files = [read_header(file) for file in checkpoints.weight_files(source)] if source else []
        if source is None or not files:
            _write_anew(model, out)
            return
        files = _without_lost_blocks(model, source, files)
        shards = _shards(model, files)
        for file, shard in zip(files, shards, strict=True):
            write(out / file.path.name, _entries(file, shard), file.metadata, _tensors(file, shard))
        if files[0].path.name != checkpoints.SINGLE:
            _write_index(model, source, out, files, shards)


def _without_lost_blocks(model: PreTrainedModel, source: Path, files: list[File]) -> list[File]:
    """Leaves out the tensors of blocks beyond the model's depth, where its source was deeper."""
    before = getattr(saved_config(source, str(source)), "num_hidden_layers", None)
    now = getattr(model.config, "num_hidden_layers", None)
    if not before or not now or before <= now:
        return files
    name = stack(model)[0].removeprefix(f"{model.base_model_prefix}.")
    beyond = re.compile(rf"(.*\.)?{re.escape(name)}\.({'|'.join(map(str, range(now, before)))})\.")
    return [
        replace(file, entries={n: e for n, e in file.entries.items() if not beyond.match(n)})
        for file in files
    ]


def _write_anew(model: PreTrainedModel, out: Path) -> None:
    """Writes all weights to one file, tied ones once."""
    aliases = model.state_dict().keys() - {name for name, _ in rest(model)}
    tensors = {n: t for n, t in checkpoints.stored_tensors(model).items() if n not in aliases}
    entries = {n: Entry(dtype_name(t.dtype), tuple(t.shape)) for n, t in tensors.items()}
    write(out / checkpoints.SINGLE, entries, {"format": "pt"}, tensors.items())


def _small_files(source: Path) -> Iterator[Path]:
    """The files to copy; folders that hold weights (other exports, checkpoints) are left out."""
    for path in sorted(source.iterdir()):
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_file():
            found = [path]
        elif path.is_dir() and not path.is_symlink():
            found = sorted(file for file in path.rglob("*") if file.is_file())
            if any(file.suffix in _WEIGHTS for file in found):
                continue
        else:
            continue
        for file in found:
            if file.suffix in _WEIGHTS or file.name.endswith(".index.json"):
                continue
            if file.stat().st_size > _SMALL:
                log.warning("%s is larger than %d MiB; not copied", file, _SMALL // 2**20)
                continue
            yield file


def _config_changes(model: PreTrainedModel, source: Path) -> dict[str, Any]:
    """Where a model's config says otherwise than the file that it was read from."""
    before, now = (
        json.loads(config.to_json_string(use_diff=False))
        for config in (saved_config(source, str(source)), model.config)
    )
    kind = type(model).__name__
    if (before.get("architectures") or [""])[0] == kind:
        now["architectures"] = before["architectures"]
    else:
        now["architectures"] = [kind]
    changes: dict[str, Any] = {
        key: value
        for key, value in now.items()
        if not key.startswith("_")
        and key not in _OF_THE_RUN
        and _lasting(before.get(key)) != _lasting(value)
    }
    if "id2label" in changes:
        changes["num_labels"] = model.config.num_labels
    return changes | {"dtype": str(now["dtype"]).removeprefix("torch.")}


def _lasting(value: Any) -> Any:
    """A config's value without the keys that always differ, also in the configs within."""
    if isinstance(value, Mapping):
        return {
            key: _lasting(inner)
            for key, inner in value.items()
            if key not in _OF_THE_RUN and not key.startswith("_")
        }
    return value


def _edit(file: Path, changes: dict[str, Any], source: Path) -> None:
    """Changes keys of a JSON file in their places; a file that needs no change keeps its bytes."""
    text = file.read_text(encoding="utf-8")
    tree: dict[str, Any] = json.loads(text)
    if "dtype" in changes and "dtype" not in tree:
        dtype = changes.pop("dtype")
        # A file that states none leaves it to its weights.
        changes |= {"torch_dtype": dtype} if "torch_dtype" in tree else {}
    edited = tree | changes
    if "auto_map" in tree and not _has_code(tree["auto_map"], source):
        log.warning("%s: auto_map names code that is not in the folder; it is left out", file.name)
        del edited["auto_map"]
    if edited != tree:
        end = "\n" if text.endswith("\n") else ""
        file.write_text(json.dumps(edited, indent=2, ensure_ascii=False) + end, encoding="utf-8")


def _has_code(auto_map: Any, folder: Path) -> bool:
    """Whether all modules that an auto_map names lie in the folder."""
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    names = [n for value in values for n in (value if isinstance(value, list) else [value]) if n]
    return all((folder / f"{str(name).partition('.')[0]}.py").is_file() for name in names)


def _shards(model: PreTrainedModel, files: list[File]) -> list[dict[str, Tensor]]:
    """The model's tensors by the names that they have in each of the files."""
    places = {name: index for index, file in enumerate(files) for name in file.entries}
    shards: list[dict[str, Tensor]] = [{} for _ in files]
    aliases: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    tensors = checkpoints.stored_tensors(model)
    for name, tensor in tensors.items():
        aliases.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    buffers = {name for name, _ in model.named_buffers()}
    prefix = f"{model.base_model_prefix}."
    for names in aliases.values():
        stored = [
            (known, tensors[name])
            for name in names
            if (known := _known(name, prefix, places)) is not None
        ]
        for known, tensor in stored:
            shards[places[known]][known] = tensor
        if stored or names[0] in buffers:
            continue
        owner, _, leaf = names[0].rpartition(".")
        if leaf == "bias" and (weight := _known(f"{owner}.weight", prefix, places)) is not None:
            # A bias that the method has added lies beside its weight.
            shards[places[weight]][f"{weight.removesuffix('.weight')}.bias"] = tensors[names[0]]
            continue
        if not side_branch.is_branch(names[0]):
            raise BenchError(f"{files[0].path.parent} has no weights under the name {names[0]}")
        shards[-1][names[0]] = tensors[names[0]]
    return shards


def _known(name: str, prefix: str, places: Mapping[str, int]) -> str | None:
    """A tensor's name in the files: with or without the name of the model inside, or None."""
    names = (name, name.removeprefix(prefix), prefix + name)
    return next((name for name in names if name in places), None)


def _entries(file: File, shard: Mapping[str, Tensor]) -> dict[str, Entry]:
    found = dict(file.entries)
    for name, tensor in shard.items():
        dtype = found[name].dtype if name in found else dtype_name(tensor.dtype)
        found[name] = Entry(dtype, tuple(tensor.shape))
    return found


def _tensors(file: File, shard: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, entry in _entries(file, shard).items():
        yield name, shard[name].to(DTYPES[entry.dtype]) if name in shard else file.read(name)


def _write_index(
    model: PreTrainedModel,
    source: Path,
    out: Path,
    files: list[File],
    shards: list[dict[str, Tensor]],
) -> None:
    index = out / checkpoints.INDEX
    shutil.copyfile(source / checkpoints.INDEX, index)
    entries = [_entries(file, shard) for file, shard in zip(files, shards, strict=True)]
    tree = json.loads(index.read_bytes())
    size = sum(entry.nbytes for shard in entries for entry in shard.values())
    places = {n: file.path.name for file, e in zip(files, entries, strict=True) for n in e}
    ordered = {n: places[n] for n in tree["weight_map"] if n in places}
    metadata = dict(tree.get("metadata") or {})
    if metadata.get("total_size") != size:
        metadata["total_size"] = size
        if "total_parameters" in metadata:
            metadata["total_parameters"] = model.num_parameters()
    _edit(index, {"metadata": metadata, "weight_map": ordered | places}, source)
