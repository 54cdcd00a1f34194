"""Where trained weights and checkpoints of cells lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.files import cache_dir, write_folder_atomically
from bench.planning.job import Job
from bench.sources.saving import save_model


def clear_scratch(job: Job) -> None:
    """Removes the cell's checkpoints."""
    shutil.rmtree(scratch_dir(job), ignore_errors=True)


def dense_seconds(place: Path, job: Job) -> float:
    """Returns the training seconds of the dense cell whose weights are in `place`.

    Raises:
        BenchError: there are none, or they were trained on other rows than the cell's task has.
    """
    if not place.is_dir():
        raise BenchError("the dense cell's weights are missing; run the dense cell first")
    stored: dict[str, Any] = json.loads((place / "sparsebench.json").read_text())
    rows = job.task.source().fingerprint
    if stored.get("rows", rows) != rows:
        raise BenchError(
            f"the dense cell was trained on other rows of {job.task.name} than those in its folder "
            "now; run the dense cell again (--rerun)"
        )
    return float(stored["train_s"])


def trained_dir(job: Job) -> Path:
    """Returns where the trained weights of a dense cell are cached."""
    return cache_dir() / "trained" / _folder_name(job)


def scratch_dir(job: Job) -> Path:
    """Returns where the checkpoints of a cell are while it trains."""
    return cache_dir() / "scratch" / _folder_name(job)


def _folder_name(job: Job) -> str:
    return f"{job.cell.key[:16]}-{job.versions.method}.{job.versions.task}"


def keep_weights(model: PreTrainedModel, job: Job, seconds: float) -> None:
    """Leaves a dense cell's weights where one-shot methods find them, whole or not at all."""
    told = {"train_s": seconds, "rows": job.task.source().fingerprint}
    with write_folder_atomically(trained_dir(job), existing="replace") as folder:
        save_model(model, folder)
        (folder / "sparsebench.json").write_text(json.dumps(told))
