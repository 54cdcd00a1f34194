"""`sparsebench.load`: a folder's model as transformers itself would have made it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.export.export import load_folder
from bench.weights.unstacked import restack


def load(folder: str | Path) -> PreTrainedModel:
    """Loads what `export` or `prune` has written, or any transformers folder.

    Returns:
        The model in eval mode, in its own class, dtype and form; packed weights are plain tensors.

    Raises:
        BenchError: what is there is damaged, or no model.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise BenchError(f"{folder} is no folder with a config.json")
    model = load_folder(path)
    restack(model)
    return model
