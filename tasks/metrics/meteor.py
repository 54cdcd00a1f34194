"""METEOR 1.5 (Denkowski & Lavie, WMT 2014): the authors' own program, or nothing.

The program is Java. It is taken from the package that coco-caption's users install (an asset, see
`bench.sources.hub`) and fetched only where there is a `java`. Where either is missing there is no
score: re-implementations give other numbers under the same name.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from bench.api import BenchError
from bench.sources import hub

REPO = "salaniz/pycocoevalcap"
MEMORY = "-Xmx2G"


class Missing(Exception):
    """METEOR cannot be computed here; the message is the table's footnote."""


def fetch() -> None:
    """Downloads the program where it can be run; being offline only costs this score."""
    if shutil.which("java") is None:
        return
    try:
        hub.fetch(REPO)
    except BenchError as error:
        if error.kind != "offline":
            raise


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """(corpus score, segment scores) of tokenized texts, as fractions.

    The corpus score is METEOR of the summed statistics, not the mean of the segments. The program
    normalises and lower-cases (`-norm`), as in e2e-metrics and in WebNLG's evaluation.

    Raises:
        Missing: no `java`, no program, or the program does not run.
    """
    java, folder = shutil.which("java"), hub.find(REPO)
    if java is None:
        raise Missing("meteor: no `java` on the PATH")
    if folder is None:
        raise Missing(f"meteor: {REPO} could not be fetched")
    command = [java, MEMORY, "-Dfile.encoding=UTF-8", "-jar", str(folder / "meteor-1.5.jar")]
    # Without a locale, Java would take é and £ for question marks.
    command += ["-", "-", "-stdio", "-norm", "-l", "en", "-a", str(folder / "paraphrase-en.gz")]
    try:
        return _ask(command, predictions, references)
    except (BrokenPipeError, ValueError):
        raise Missing("meteor: `java` does not run meteor-1.5.jar") from None


def _ask(
    command: list[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """A line each way for every segment, then one for all of them."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        answers = iter(program.stdout.readline, "")

        def tell(*fields: str) -> None:
            program.stdin.write(" ||| ".join(fields) + "\n")
            program.stdin.flush()

        def answer() -> str:
            return next(answers, "").strip()

        statistics = []
        for text, gold in zip(predictions, references, strict=True):
            tell("SCORE", *map(_plain, gold), _plain(text))
            statistics.append(answer())
        tell("EVAL", *statistics)
        segments = [float(answer()) for _ in statistics]
        return float(answer()), segments


def _plain(text: str) -> str:
    """One line that holds no field separator."""
    return " ".join(text.replace("|||", " ").split())
