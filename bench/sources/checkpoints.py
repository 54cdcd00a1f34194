"""The weight files of a model's folder, and the names that tensors have in them.

transformers renames tensors while it loads (`LayerNorm.gamma`, a missing `bert.`, experts one by
one) and knows the way back.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from bench.core.errors import BenchError, one_line

INDEX = SAFE_WEIGHTS_INDEX_NAME
SINGLE = SAFE_WEIGHTS_NAME


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that transformers reads, and no other that lie beside them.

    Returns:
        One file, the shards that the index names, or nothing.

    Raises:
        BenchError: the index is damaged, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BenchError(f"{index}: damaged index: {one_line(error)}") from None
    for name in names:
        # A foreign index may name files elsewhere; what it names is also written.
        if not (isinstance(name, str) and Path(name).name == name and name.endswith("safetensors")):
            raise BenchError(f"{index}: damaged index: {name!r} is no safetensors file beside it")
        if not (folder / name).is_file():
            raise BenchError(f"{index}: {name} is missing")
    return [folder / name for name in names]


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns a model's tensors as checkpoints of its kind name and divide them.

    Tied tensors come under each of their names.
    """
    unsaved = set(model._keys_to_ignore_on_save or ())
    state = {name: t for name, t in model.state_dict().items() if name not in unsaved}
    found: dict[str, Tensor] = revert_weight_conversion(model, state)
    return found
