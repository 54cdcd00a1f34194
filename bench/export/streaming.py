"""A folder's model on the meta device, with its weights read from the files one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.export import packed_folder
from bench.formats.file_sizes import rest
from bench.formats.safetensors_file import Entry, dtype_name, read_header
from bench.sources import checkpoints
from bench.sources.architectures import saved_class, saved_config


def streamed(folder: Path) -> tuple[PreTrainedModel, packed_folder.Fetch] | None:
    """Returns a folder's model on the meta device and a reader of its weights, one at a time.

    None where the files do not hold exactly the model's tensors; then transformers may know why.
    """
    if (folder / packed_folder.FILE).is_file():
        return None
    files = [read_header(path) for path in checkpoints.weight_files(folder)]
    entries = {name: entry for file in files for name, entry in file.entries.items()}
    config = saved_config(folder, str(folder))
    kind = saved_class(config, str(folder))
    branches = packed_folder.branches_of(entries)
    dtype: Any = config.dtype or torch.float32
    model = packed_folder.skeleton(kind, config, dtype, "meta", branches)
    if entries != {n: Entry(dtype_name(t.dtype), tuple(t.shape)) for n, t in rest(model)}:
        return None
    packed_folder.restore_generation(model, folder)
    places = {name: file for file in files for name in file.entries}
    return model, lambda name, _: places[name].read(name)
