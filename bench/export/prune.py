"""`sparsebench prune`: one model in, one pruned transformers folder out; no task, no record.

The folder is the model's own but for the pruned weights (`bench.export.folders`), so whatever loads
the model loads it, too, where this project is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.api import Context
from bench.core import seeds
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError, one_line
from bench.core.files import check_free, write_folder_atomically
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern
from bench.core.record_parts import Sparsity
from bench.costs.parameters import count_sparsity
from bench.export.card_facts import command_line, counted, of_calibration, of_method
from bench.export.folders import write_settings, write_weights
from bench.export.model_card import Card, write_card
from bench.pipeline.contract import check_contract
from bench.planning import registry
from bench.planning.setups import one_shot_setup
from bench.sources import catalog, limits, token_windows
from bench.sources.architectures import saved_class, saved_config
from bench.sources.loading import load_model, load_tokenizer
from bench.weights import targets
from bench.weights.finite import check_outputs, check_weights
from bench.weights.precision import default_device
from bench.weights.zeros_before import ZerosBefore


def prune(
    name: str,
    method: str,
    out: Path,
    pattern: Pattern | None = None,
    sparsity: float | None = None,
    overrides: Mapping[str, Scalar] | None = None,
    calibration: str | None = None,
    calib: int = 128,
    length: int | None = None,
    seed: int = 1,
) -> Sparsity:
    """Prunes a model with a one-shot method and writes it to `out`, whole or not at all.

    Args:
        name: the model's slug, hub id or folder.
        method: a method that does not train.
        out: a folder that does not exist or is empty.
        pattern: by default the method's first.
        sparsity: fraction to prune; N:M has its own.
        overrides: parameters of the method.
        calibration: a task, whose train text is used, a text file, or token ids (.json, .npy).
        calib: calibration sequences.
        length: tokens a sequence; by default 512 or what the model has positions for.
        seed: draws calibration windows and whatever the method draws.

    Returns:
        What was counted in the written folder.

    Raises:
        BenchError: bad input or a failure, in one line; `out` is as it was.
    """
    setup = one_shot_setup(method, pattern, sparsity, overrides or {}, seed)
    made, cell = setup.method, setup.cell
    check_free(out)
    folder = catalog.locate(name)
    config = saved_config(folder, name)
    saved_class(config, name)
    length = length or min(512, limits.positions(config, 512) or 512)
    limits.check_length(config, length, name)
    budget = Budget(steps=1, batch=1, length=length, calib=calib)
    with write_folder_atomically(out) as scratch:
        batches = None
        if calibration is not None:
            batches = _calibration(calibration, folder, budget, seed)
        model = load_model(folder, stored_dtype=True, name=name)
        if batches is not None:
            limits.check_ids(batches, model, f"--calibration {calibration}")
        check_weights(model, name)
        dtype = model.dtype
        device = default_device()
        model.float().to(device).eval()
        ctx = _context(cell, budget, model, batches, folder, name)
        before = ZerosBefore(ctx.targets)
        before.check_room(ctx.targets, cell.pattern, cell.sparsity, name)
        seeds.seed_all(seeds.derive("method", seed))
        made.attach(model, ctx)
        made.finish(model)
        check_outputs(model, method)
        model.to(dtype)  # type: ignore[arg-type]
        check_weights(model, method)
        write_settings(model, None, folder, scratch)
        write_weights(model, folder, scratch)
        written = load_model(scratch)
        found = count_sparsity(written, cell.pattern, before, made.left_dense)
        check_contract(cell, made, found, written, before)
        flags = {"calibration": calibration, "calib": calib, "length": length, "seed": seed}
        command = command_line(
            "prune",
            name,
            method=method,
            pattern=cell.pattern.text,
            sparsity=cell.sparsity,
            set=[f"{key}={value}" for key, value in (overrides or {}).items()],
            **(flags if batches is not None else {"seed": seed}),
            out=str(out),
        )
        facts = of_method(cell, made) | of_calibration(calibration, batches) | counted(found)
        tags = (method, cell.pattern.text)
        write_card(scratch, written, Card(name, command, facts, tags))
    return found


def _context(
    cell: Cell,
    budget: Budget,
    model: PreTrainedModel,
    batches: list[dict[str, Tensor]] | None,
    folder: Path,
    name: str,
) -> Context:
    device = model.device

    def calibration() -> Iterable[dict[str, Tensor]]:
        if batches is None:
            raise BenchError(f"{cell.method} needs --calibration: a task, a text file or token ids")
        return [{k: v.to(device) for k, v in batch.items()} for batch in batches]

    def teacher() -> PreTrainedModel:
        dense: Any = load_model(folder, name=name)
        dense.to(device).requires_grad_(False)
        teacher: PreTrainedModel = dense
        return teacher

    return Context(
        cell=cell,
        budget=budget,
        targets=targets.prunable(model),
        calibration=calibration,
        teacher=teacher,
        rng=torch.Generator().manual_seed(seeds.derive("rng", cell.method, cell.seed)),
        device=device,
    )


def _calibration(source: str, folder: Path, budget: Budget, seed: int) -> list[dict[str, Tensor]]:
    """Batches from a task's training data, a text or token ids; ids need no tokenizer."""
    path = Path(source).expanduser()
    ids = path.suffix in (".json", ".npy")
    tok = None if ids else load_tokenizer(folder)
    if tok is not None:
        tok.model_max_length = budget.length
        if tok.pad_token is None:
            tok.pad_token = tok.eos_token
    elif not ids:
        raise BenchError(
            f"--calibration {source}: the model has no tokenizer; give token ids (.json, .npy)"
        )
    drawn = seeds.derive("calibration", seed)
    if not (ids or path.suffix == ".txt" or path.is_file()):
        task = registry.task(source)
        task.prepare()
        assert tok is not None
        return task.calibration(tok, budget.calib, budget.length, drawn)
    try:
        found = _read_ids(path) if ids else _read_text(path, tok)
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchError(f"--calibration {source}: {one_line(error)}") from None
    if isinstance(found, Tensor):
        rows = list(token_windows.draw(found, budget.calib, budget.length, drawn, source))
    else:
        rows = [row[: budget.length] for row in found[: budget.calib]]
    return token_windows.batches(rows)


def _read_text(path: Path, tok: Any) -> Tensor:
    """A text as one stream: (tokens,)."""
    text = path.read_text(encoding="utf-8")
    return torch.tensor(tok(text, add_special_tokens=False, verbose=False)["input_ids"]).long()


def _read_ids(path: Path) -> Tensor | list[Tensor]:
    """Token ids: a flat list is one stream, a list of lists holds the sequences themselves."""
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
            raise ValueError(f"wants integers in one or two dimensions, not {array.dtype}")
        stream = torch.from_numpy(array.astype(np.int64))
        return stream if array.ndim == 1 else list(stream)
    tree = json.loads(path.read_text(encoding="utf-8"))
    flat = isinstance(tree, list) and all(type(i) is int for i in tree)
    rows = [tree] if flat else tree
    if not (isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows)):
        raise ValueError("wants a list of token ids, or a list of such lists")
    if not all(row and all(type(i) is int for i in row) for row in rows):
        raise ValueError("wants lists of integers, none of them empty")
    found = [torch.tensor(row) for row in rows]
    return found[0] if flat else found
