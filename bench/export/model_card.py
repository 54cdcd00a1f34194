"""The model card of a written folder: README.md, with the hub's YAML front matter.

The front matter lists what each command did, under the key `sparsebench`. A later command reads
that list and adds its own entry, so the card of a folder tells everything since the base model. A
card that someone else wrote stays byte by byte, as README.source.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel
from transformers.modelcard import TASK_MAPPING

from bench import __version__
from bench.core import provenance
from bench.core.overrides import Scalar
from bench.core.record import Record
from bench.export.card_text import Facts, page, shown
from bench.sources import catalog
from bench.weights.side_branch import Branch

CARD = "README.md"
SOURCE_CARD = "README.source.md"
"""Where the source's own card is kept."""

_KEY = "sparsebench"
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
_KEPT = ("language", "license", "license_name", "license_link", "datasets", "pipeline_tag")
"""Keys of a source's card that hold for what is made from it. Its scores do not."""

_STEPS = TypeAdapter(list[Facts])


@dataclass(frozen=True)
class Card:
    """What a command knows of the model that it writes.

    Attributes:
        name: the model that it was given: a slug, a hub id or a folder.
        command: the command line, with all defaults spelled out (`command_line`).
        facts: what it did and counted.
        tags: for the hub's search, beside those that every card has.
        record: of the model's scores, where there is one.
        rounded: whether weights were rounded to integers after their zeros were counted.
    """

    name: str
    command: str
    facts: Mapping[str, Scalar]
    tags: Sequence[str] = ()
    record: Record | None = None
    rounded: bool = False


@dataclass(frozen=True)
class _Previous:
    """What the card of the source says; nothing without one.

    Attributes:
        data: its front matter.
        steps: the commands before this one; none if the card is not ours.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Facts] = ()


def write_card(out: Path, model: PreTrainedModel, card: Card) -> None:
    """Writes the card into a folder that is otherwise complete.

    Args:
        out: a folder with weights; its README.md, if any, is the source's.
        model: what was written.
        card: what is known of it.
    """
    path = out / CARD
    previous = _Previous()
    if path.is_file():
        previous = _read(path)
        if not previous.steps:
            path.rename(_free(out))
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    versions = f"sparsebench {__version__} ({provenance.commit()}), torch {torch.__version__}"
    versions += f", transformers {transformers.__version__}"
    step = {"command": card.command, **card.facts, "bytes": size, "versions": versions}
    steps = [*previous.steps, step]
    base = base_of(card.name) or _repo(previous.data.get("base_model"))
    plain = not (out / "packed.safetensors").is_file() and _is_plain(model)
    data = _front_matter(model, card, steps, base, plain, previous.data)
    text = page(
        shown(card.name),
        base,
        steps,
        model=type(model).__name__ if plain else None,
        record=card.record,
        rounded=card.rounded,
        licence=_text(data.get("license_name") or data.get("license")),
        kept=sorted(file.name for file in out.glob("README.source*.md")),
    )
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def base_of(name: str) -> str | None:
    """Returns the hub id of a model; None for what is not on the hub."""
    if (Path(name).expanduser() / "config.json").is_file() and name not in catalog.PLACES:
        return None
    if name not in catalog.PLACES and name.count("/") != 1:
        return None
    place = catalog.place_of(name)
    made_here = place.tiny is not None or place.command or name.startswith("local/")
    return None if made_here or place.gguf else place.repo  # a GGUF asset is another's copy


def _read(path: Path) -> _Previous:
    """Reads a card that may come from anyone; what cannot be read says nothing."""
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        data = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # YAML has many ways to be wrong
        return _Previous()
    try:
        return _Previous(data, _STEPS.validate_python(data.get(_KEY) or []))
    except ValidationError:
        return _Previous(data)


def _free(out: Path) -> Path:
    """Returns the first name for the source's card that is not taken."""
    names = (SOURCE_CARD, *(f"README.source-{i}.md" for i in range(2, 100)))
    return next(out / name for name in names if not (out / name).exists())


def _front_matter(
    model: PreTrainedModel,
    card: Card,
    steps: Sequence[Facts],
    base: str | None,
    plain: bool,
    source: Mapping[str, Any],
) -> ModelCardData:
    kept: dict[str, Any] = {key: source[key] for key in _KEPT if key in source}
    kept.setdefault("license", _text(getattr(model.config, "license", None)))
    if tag := pipeline_of(type(model).__name__):
        kept["pipeline_tag"] = tag
    inherited = source.get("tags")
    earlier = [str(tag) for tag in inherited] if isinstance(inherited, list) else []
    tags = dict.fromkeys([*earlier, "sparsebench", "sparse", *filter(None, card.tags)])
    record = card.record
    results = list(_results(record, kept.get("pipeline_tag"))) if record else None
    return ModelCardData(
        base_model=base,
        library_name="transformers" if plain else "sparsebench",
        tags=[*tags],
        model_name=shown(card.name) if results else None,
        eval_results=results,
        **kept,
        sparsebench=[dict(step) for step in steps],
    )


def pipeline_of(kind: str) -> str | None:
    """Returns the hub's tag for a model class, where it has a head that says so."""
    classes: Any  # each maps a kind of config to a class or several
    for task, classes in TASK_MAPPING.items():
        for value in classes.values():
            if kind == value or (isinstance(value, (tuple, list)) and kind in value):
                return str(task)
    return None


def _results(record: Record, task: str | None) -> Iterator[EvalResult]:
    scores, data = record.scores, record.data
    if scores is None or data is None:
        return
    for metric, value in sorted(scores.all.items(), key=lambda pair: pair[0] != scores.metric):
        yield EvalResult(
            task_type=task or "text-generation",
            dataset_type=data.repo,
            dataset_name=record.cell.task,
            dataset_revision=data.revision,
            dataset_args={"split": "reported", "items": scores.n},
            metric_type=metric,
            metric_value=value,
        )


def _is_plain(model: PreTrainedModel) -> bool:
    """Tells whether transformers alone reads the model: nothing sliced, no side branch."""
    sliced = getattr(model.config, "sliced", None)
    return not sliced and not any(isinstance(module, Branch) for module in model.modules())


def _repo(value: Any) -> str | None:
    """Returns what a card calls its base model, if it is written as a hub id."""
    return value if isinstance(value, str) and _REPO.fullmatch(value) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
