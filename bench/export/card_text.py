"""The text of a model card: what was done, how it was measured, what it scores, how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.core.overrides import Scalar
from bench.core.record import Record
from bench.core.tables import escape, markdown, percent
from bench.formats.file_sizes import PLAIN

Facts = dict[str, Scalar]
"""What a command did, by name; the order is that of the card."""

_HOME = "https://github.com/sparsebench/sparsebench"

_SHARES = ("sparsity", "sparsity_before", "sparsity_min_matrix", "sparsity_max_matrix")
_SIZES = ("bytes", "bytes_dense_float32")


def page(
    name: str,
    base: str | None,
    steps: Sequence[Facts],
    *,
    model: str | None,
    record: Record | None,
    rounded: bool,
    licence: str | None,
    kept: Sequence[str],
) -> str:
    """Returns the card without its front matter.

    Args:
        name: the model that the last command was given.
        base: the hub id of the model that all began with, if it has one.
        steps: what each command did, the first one first.
        model: the class that transformers loads the folder with; None where it cannot.
        record: of the scores, if the model has some.
        rounded: whether weights were rounded after their zeros were counted.
        licence: what the source says; None if it says nothing.
        kept: files that hold the source's own card.
    """
    parts = [
        f"# {escape(' · '.join([base or name, *filter(None, map(_short, steps))]))}",
        _opening(name, base, steps),
        "## What was done",
        *(part for step in steps for part in _told(step)),
        "## How it was measured",
        _measured(rounded),
        "## Scores",
        _scores(record),
        "## Use",
        _use(model),
        "## Licence",
        f"The source names this licence: {escape(licence)}."
        if licence
        else "The source names no licence in its card or config. The base model's terms apply.",
    ]
    if kept:
        links = ", ".join(f"[{name}]({name})" for name in kept)
        parts += ["## The source's card", f"Kept as it was; it describes the source: {links}."]
    return "\n\n".join(parts) + "\n"


def shown(name: str) -> str:
    """Returns a name or a path that says nothing of this machine's folders."""
    path = Path(name)
    if path.is_absolute() or name.startswith("~") or ".." in path.parts:
        return path.expanduser().resolve().name
    return name


def _opening(name: str, base: str | None, steps: Sequence[Facts]) -> str:
    text = f"[sparsebench]({_HOME}) made this folder from {escape(name)}."
    if base:
        text += f" The base model is [{escape(base)}](https://huggingface.co/{base})."
    if isinstance(share := steps[-1].get("sparsity"), float):
        text += f" **{percent(share)} %** of the weights in its blocks' matrices are zero."
    return text


def _told(step: Facts) -> Iterator[str]:
    """Returns a command as a block of code, and a table of what it did."""
    yield "\n".join(f"    {line}" for line in str(step["command"]).splitlines())
    rows = [
        [escape(name.replace("_", " ")), escape(_value(name, value))]
        for name, value in step.items()
        if name != "command"
    ]
    yield markdown(("what", "fact"), rows)


def _value(name: str, value: Scalar) -> str:
    if name in _SHARES and isinstance(value, float):
        return f"{percent(value)} %"
    if name in _SIZES and isinstance(value, int):
        return f"{value} ({value / 1e6:.3f} MB)"
    return str(value)


def _short(step: Facts) -> str:
    """Returns a step in a word or two, for the title."""
    if "method" in step:
        return f"{step['method']} {step.get('pattern', '')}".strip()
    return str(step.get("format", "")).replace(PLAIN, "")


def _measured(rounded: bool) -> str:
    text = (
        "A zero is a weight that equals 0.0. Sparsity is the share of zeros among all matrices of "
        "the transformer blocks; embeddings, norms, biases and heads are left out. It is counted "
        "in what was written, not taken from what was asked for. Bytes are those of the weight "
        "files. An ordinary file stores zeros like other weights: zeros alone save no space and "
        "no time."
    )
    if rounded:
        text += " Zeros were counted before rounding to integers, which keeps them and adds others."
    return text


def _scores(record: Record | None) -> str:
    if record is None or record.scores is None or record.data is None:
        return "Not scored: this command measures no quality. Score the model before you use it."
    scores, cell = record.scores, record.cell
    order = sorted(scores.all.items(), key=lambda pair: pair[0] != scores.metric)
    rows = [
        [escape(cell.task), escape(name), f"{value:.6g}", "reported", str(scores.n)]
        for name, value in order
    ]
    lines = [
        markdown(("task", "metric", "value", "split", "items"), rows),
        f"From the record `{record.key[:12]}` of one seed ({cell.seed}). `reported` is the split "
        "that sparsebench scores once, after all choices are made; its page on tasks names the "
        "official split.",
    ]
    if record.data.subset:
        lines.append(f"The data is a subset: {escape(record.data.subset)}.")
    return "\n\n".join([*lines, *map(escape, scores.notes or ())])


def _use(model: str | None) -> str:
    if model is None:
        return (
            "`sparsebench load DIR --out plain/` checks this folder and writes an ordinary "
            "transformers folder where the model has one."
        )
    return f"    from transformers import {model}\n    model = {model}.from_pretrained(DIR)"
