"""`sparsebench prune`: one model in, one pruned transformers folder out; no task, no record.

The folder is the model's own but for the pruned weights (`bench.export.folders`), so whatever loads
the model loads it, too, where this project is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench.core import seeds
from bench.core.cell import Budget
from bench.core.errors import BenchError, one_line
from bench.core.files import check_free, write_folder_atomically
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern
from bench.core.record_parts import Sparsity
from bench.costs.contract import check_contract
from bench.costs.parameters import count_sparsity
from bench.export.card_facts import command_line, of_calibration, of_method, of_zeros
from bench.export.folders import write_settings, write_weights
from bench.export.in_memory import prune_as
from bench.export.model_card import Card, write_card
from bench.planning import registry
from bench.planning.setups import single_setup
from bench.sources import catalog, limits
from bench.sources.architectures import saved_class, saved_config
from bench.sources.calibration import default_length, read, sequences_of
from bench.sources.loading import load_model, load_tokenizer
from bench.weights.precision import default_device


def prune_folder(
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
    setup = single_setup(method, pattern, sparsity, overrides or {}, seed, trains=False)
    cell = setup.cell
    check_free(out)
    folder = catalog.locate(name)
    config = saved_config(folder, name)
    saved_class(config, name)
    length = default_length(config, length)
    limits.check_length(config, length, name)
    budget = Budget(steps=1, batch=1, length=length, calib=calib)
    with write_folder_atomically(out) as scratch:
        batches = None
        if calibration is not None:
            batches = _calibration(calibration, folder, budget, seed)
        model = load_model(folder, stored_dtype=True, name=name)
        if batches is not None:
            limits.check_ids(batches, model, f"--calibration {calibration}")
        model.to(default_device())  # type: ignore[arg-type]
        before = prune_as(setup, model, budget, batches, name)
        write_settings(model, None, folder, scratch)
        write_weights(model, folder, scratch)
        written = load_model(scratch)
        found = count_sparsity(written, cell.pattern, before, setup.method.left_dense)
        check_contract(cell, setup.method, found, written, before)
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
        facts = of_method(cell, setup.method) | of_calibration(calibration, batches)
        facts |= of_zeros(found)
        tags = (method, cell.pattern.text)
        write_card(scratch, written, Card(name, command, facts, tags))
    return found


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
    what = f"--calibration {source}"
    try:
        values = read(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchError(f"{what}: {one_line(error)}") from None
    return sequences_of(values, tok, budget.calib, budget.length, drawn, what)
