"""Moves records of this machine to the published ones, if they may stand there.

They must hold what a submission must hold. Beyond that, a published row has all its seeds, comes
from committed code, and has its dense reference beside it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.core import provenance
from bench.core.cell import REFERENCE, Cell
from bench.core.record import LOCAL, Record
from bench.core.store import Store, path_of
from bench.core.tuning import TUNING_SEED, Choice, Choices, path_of_choice, write
from bench.planning import registry
from bench.reporting.rows import Group, group_of
from bench.reporting.statistics import MIN_SEEDS
from bench.review import submissions


def refusals(
    records: Sequence[Record], problems: Sequence[str], published: Store, tree: Path
) -> list[str]:
    """Returns one line for each reason against the publication of these records.

    Args:
        records: done records of this machine.
        problems: a line for each file beside them that is no record.
        published: the published records.
        tree: the folder of git's working tree that holds the published ones.
    """
    lines = list(problems)
    changed = provenance.uncommitted(tree)
    if changed is None:
        lines.append(f"{tree} is in no git repository: publish from a clone")
    elif changed:
        lines.append(f"{changed[0]} is not committed: commit or stash what has changed")
    for record in records:
        lines += [f"{path_of(record.cell)}: {line}" for line in _of_record(record)]
    return [*lines, *_seeds(records, published), *_references(records, published)]


def choices_of(records: Iterable[Record], own: Store) -> list[Choice]:
    """Returns the choices of settings of this machine that some of the records stand for."""
    choices = Choices(own.root)
    cells = {r.cell.model_copy(update={"overrides": r.cell.overrides.shared}) for r in records}
    found = [choices.of(cell) for cell in cells]
    return [choice for choice in choices.all if choice in found]


def choice_refusals(choices: Iterable[Choice]) -> list[str]:
    """Returns one line for each choice that may not be published."""
    return [
        f"{path_of_choice(Path(), choice)}: the code that made it was not committed; tune again"
        for choice in choices
        if choice.code.dirty or choice.code.git == "unknown"
    ]


def publish_choices(choices: Iterable[Choice], own: Store, published: Store) -> list[Path]:
    """Moves choices to the published ones and returns their new paths.

    Raises:
        BenchError: kind `disk`.
    """
    written = []
    for choice in choices:
        written.append(write(published.root, choice))
        path_of_choice(own.root, choice).unlink()
    return written


def publish(records: Iterable[Record], own: Store, published: Store) -> list[Path]:
    """Moves records to the published ones and returns their new paths.

    Raises:
        BenchError: kind `disk`; the record that it names is still here.
    """
    written = []
    for record in records:
        written.append(published.put(record))
        own.path(record.cell).unlink()
    return written


def _of_record(record: Record) -> Iterator[str]:
    cell, code = record.cell, record.code
    if record.origin != LOCAL:
        yield f"it comes from {record.origin!r}; `sparsebench submit` files it"
    for kind, name in (("method", cell.method), ("task", cell.task)):
        if name not in registry.builtin("method" if kind == "method" else "task"):
            yield f"{kind} {name!r} is not one of this project"
    if cell.model.startswith("local/"):
        yield "its model is a folder of this machine; publish what others can fetch"
    if cell.seed == TUNING_SEED:
        yield f"seed {TUNING_SEED} is for trials of settings; run it with another seed"
    if registry.is_stale(record):
        yield "an earlier version of its method or task made it; run it again"
        return  # nothing else is compared with the present version
    if code.dirty or code.git == "unknown":
        yield "the code that made it was not committed; run it again from a commit"
    yield from submissions.contradictions(record)


def _seeds(records: Sequence[Record], published: Store) -> Iterator[str]:
    """Names rows that have too few seeds, or lack one of another row here or of the dense one."""
    rows: dict[Group, dict[Path, set[int]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        rows[group_of(record)][path_of(record.cell).parent].add(record.cell.seed)
    there: dict[Group, set[int]] = defaultdict(set)
    for record in records:
        there[group_of(record)] |= _published_seeds(record.cell.dense, published)
    for group, inside in rows.items():
        wanted = there[group].union(*inside.values())
        for row, seeds in inside.items():
            if len(seeds) < MIN_SEEDS:
                yield f"{row}: {len(seeds)} of at least {MIN_SEEDS} seeds"
            elif lacking := sorted(wanted - seeds):
                yield f"{row}: no seed {', '.join(map(str, lacking))}, which other rows have"


def _published_seeds(cell: Cell, published: Store) -> set[int]:
    names = (path.name for path in published.path(cell).parent.glob("seed*.json"))
    return {int(found[1]) for name in names if (found := re.fullmatch(r"seed(\d+)\.json", name))}


def _references(records: Sequence[Record], published: Store) -> Iterator[str]:
    """Names dense cells that neither are among the records nor are published."""
    there = {record.cell for record in records}
    for cell in dict.fromkeys(r.cell.dense for r in records if r.cell.method != REFERENCE):
        if cell in there:
            continue
        path = published.path(cell)
        if not path.exists() or registry.is_stale(published.load(path)):
            yield f"{path_of(cell)}: recovery needs this dense cell; publish it as well"
