"""`sparsebench latency`: saved models against the first of them, in one interleaved run.

What is measured is what would be deployed (`bench.costs.deployed`): each model is brought into
that form, saved, and loaded again, for the passes here and for the memory in a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.core import provenance
from bench.core.record_parts import Speed
from bench.core.tables import plain
from bench.costs import deployed, measure
from bench.sources import catalog, limits, loading
from bench.sources.architectures import saved_config
from bench.sources.saving import save_model
from bench.weights.precision import dtype_of
from bench.weights.side_branch import Branch

# What a cell measures of itself: a few seconds at most, but for models of 100M and more.
CELL_BATCHES, CELL_LENGTH, CELL_TURNS, CELL_SECONDS = (1, 32), 128, 20, 1.0

HEADER = (
    "model",
    "form",
    "MiB on disk",
    "batch",
    "ms p50",
    "ms p95",
    "sequences/s",
    "× faster",
    "quartiles",
    "peak MiB",
)


def table(
    names: Sequence[str],
    batches: Sequence[int],
    length: int,
    turns: int,
    seconds: float,
    dtype: str,
) -> str:
    """Times and renders.

    Args:
        names: folders, slugs or hub ids; the first is what the others are compared with.
        batches: sequences a pass, one setting each.
        length: tokens a sequence.
        turns: timed passes of each model and setting, at most.
        seconds: time for a setting, but three passes at least.
        dtype: `auto` (bf16 on an accelerator that multiplies it), `float32` or `bf16`.

    Raises:
        BenchError: a name that is no model, or too short for `length`.
    """
    measure.reuse_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dtype_of(dtype, device)
    rows = []
    sources = [catalog.locate(name) for name in names]
    for name, source in zip(names, sources, strict=True):
        limits.check_length(saved_config(source, name), length, name)
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as scratch:
        folders, forms = [], []
        for i, source in enumerate(sources):
            folder = Path(scratch, str(i))
            forms.append(_save_deployed(source, folder))
            folders.append(folder)
        loaded, kernels = zip(*(_load(folder, chosen, device) for folder in folders), strict=True)
        for batch in batches:
            times = measure.latency(loaded, batch, length, turns, seconds)
            peaks = _peaks(folders, batch, length, chosen, device)
            for i, taken in enumerate(times):
                disk = sum(f.stat().st_size for f in folders[i].glob("*.safetensors"))
                low, ratio, high = measure.paired_quartiles(times[0], taken)
                p50, p95 = measure.p50_p95(taken)
                rows.append(
                    [
                        Path(names[i]).name,
                        kernels[i] or forms[i],
                        f"{disk / 2**20:.1f}",
                        str(batch),
                        f"{1000 * p50:.1f}",
                        f"{1000 * p95:.1f}",
                        f"{batch / p50:.1f}",
                        f"{ratio:.2f}",
                        f"{low:.2f}–{high:.2f}",
                        f"{peaks[i] / 2**20:.0f}",
                    ]
                )
    about = (
        f"forward passes of {length} tokens, {str(chosen).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} threads, medians of up to {turns} interleaved passes"
    )
    return about + "\n\n" + plain(HEADER, rows)


def of_cell(model: PreTrainedModel, length: int) -> list[Speed]:
    """Measures an exported model as it would be deployed, for one and for many sequences.

    Where that is another form than the dense model's, a dense twin takes turns with it. What does
    not fit into memory is left out, and so is a batch whose pass would take longer than all passes
    are to take: large models on small machines.
    """
    dtype, length = dtype_of("auto", model.device), min(length, CELL_LENGTH)
    found: list[Speed] = []
    try:
        made, form = deployed.deployed(model, dtype)
        compared = [made]
        if form != deployed.DENSE or any(isinstance(m, Branch) for m in made.modules()):
            compared.append(deployed.dense_twin(model, dtype))
        for batch in CELL_BATCHES:
            if found and found[0].ms_p50 * batch > 1000 * CELL_SECONDS * len(CELL_BATCHES):
                break
            times = measure.latency(compared, batch, length, CELL_TURNS, CELL_SECONDS)
            p50, p95 = measure.p50_p95(times[0])
            found.append(
                Speed(
                    hardware=provenance.hardware(),
                    dtype=str(dtype).removeprefix("torch."),
                    form=form,
                    batch=batch,
                    length=length,
                    ms_p50=1000 * p50,
                    ms_p95=1000 * p95,
                    dense_ms_p50=1000 * measure.p50_p95(times[-1])[0],
                )
            )
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    return found


def _save_deployed(source: Path, folder: Path) -> str:
    model = loading.load_model(source)
    form = deployed.slice_dead_units(model)
    save_model(model, folder)
    return form


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, str]:
    """Returns the model, and the name of the kernel that it uses, if any."""
    model: Any = loading.load_model(folder)
    model.to(device=device, dtype=dtype).eval()
    return model, deployed.use_kernel(model)


def _peaks(
    folders: Sequence[Path], batch: int, length: int, dtype: torch.dtype, device: torch.device
) -> list[int]:
    """Measures peak bytes of loading and one pass, each in a fresh process."""
    return [
        measure.in_fresh_process(_peak, folder, batch, length, dtype, device) for folder in folders
    ]


def _peak(folder: Path, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> int:
    measure.latency([_load(folder, dtype, device)[0]], batch, length, 1, 0.0)
    return measure.peak_bytes(device)
