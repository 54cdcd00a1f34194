"""What a model card tells of a command: its command line, and what it did and counted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bench.api import Method
from bench.core.cell import Cell
from bench.core.overrides import Quantization
from bench.core.record import Record
from bench.core.record_parts import Sparsity
from bench.core.tables import printable
from bench.export.card_text import Facts, shown


def command_line(command: str, *positional: str, **options: Any) -> str:
    """Returns a command line that repeats a command, without the folders of this machine.

    Args:
        command: its name.
        positional: its arguments; of a path outside the working folder the last part is kept.
        options: its flags. None and False are left out, a list gives several values.
    """
    words = ["sparsebench", command, *map(shown, positional)]
    for name, value in options.items():
        if value is None or value is False or value == []:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(shown(str(value)))
    return printable(shlex.join(words))


def of_zeros(found: Sparsity) -> Facts:
    """Returns the facts about zeros."""
    return {
        "sparsity": round(found.overall, 6),
        "sparsity_before": round(found.before or 0.0, 6),
        "sparsity_min_matrix": round(found.min_layer, 6),
        "sparsity_max_matrix": round(found.max_layer, 6),
    }


def of_method(cell: Cell, method: Method) -> Facts:
    """Returns the facts about a method and its parameters."""
    parameters = ", ".join(f"{name}={value}" for name, value in asdict(method.params).items())
    return {
        "method": cell.method,
        "paper": method.source(),
        "parameters": parameters or "none",
        "pattern": cell.pattern.text,
        "sparsity_asked": cell.sparsity,
        "seed": cell.seed,
    }


def of_record(record: Record) -> Facts:
    """Returns the facts about the cell of a record."""
    cell, budget = record.cell, record.budget
    facts: Facts = {
        "method": cell.method,
        "parameters": ", ".join(f"{k}={v}" for k, v in record.hyper.items()) or "none",
        "pattern": cell.pattern.text,
        "sparsity_asked": cell.sparsity,
        "seed": cell.seed,
        "task": cell.task,
        "record": record.key,
    }
    if budget:
        facts["budget"] = f"{budget.steps} steps of {budget.batch} × {budget.length} tokens"
        facts["calibration_sequences"] = budget.calib
    if record.data:
        facts["data"] = f"{record.data.repo}, sha256 {record.data.fingerprint[:12]}"
    return facts


def of_calibration(source: str | None, batches: Sequence[Mapping[str, Tensor]] | None) -> Facts:
    """Returns the facts about calibration data; tokens are those that are not padding."""
    if source is None or batches is None:
        return {"calibration": "none"}
    masks = [b.get("attention_mask", torch.ones_like(b["input_ids"])) for b in batches]
    return {
        "calibration": shown(source),
        "calibration_sequences": sum(len(mask) for mask in masks),
        "calibration_tokens": sum(int(mask.sum()) for mask in masks),
    }


def of_format(
    name: str, sparsity: float, rounded: Quantization | None = None, notes: Sequence[str] = ()
) -> Facts:
    """Returns the facts about a format and the zeros in it."""
    facts: Facts = {"format": name, "sparsity": round(sparsity, 6)}
    if rounded:
        facts["rounded_to"] = str(rounded)
    return facts | ({"notes": "; ".join(notes)} if notes else {})
