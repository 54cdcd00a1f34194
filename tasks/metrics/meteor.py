"""METEOR 1.5 (Denkowski & Lavie, WMT 2014), computed by the authors' own Java program.

The program comes from the package pycocoevalcap (an asset, see `bench.sources.pypi_assets`). It is
fetched only where `java` is on the PATH. Without program or Java there is no score, because
re-implementations give other numbers under the same name.
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
    """METEOR cannot be computed on this machine; the message becomes the table's footnote."""


def fetch() -> None:
    """Downloads the program where it can be run. Offline, only this score is missing."""
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
    """Returns (corpus score, item scores) of tokenized texts, as fractions.

    The corpus score is METEOR of the summed statistics, not the mean over items. The program
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
    """Exchanges a line with the program for every item, then one for all of them."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as program:
        stdin, stdout = program.stdin, program.stdout
        assert stdin is not None
        assert stdout is not None
        answers = iter(stdout.readline, "")

        def tell(*fields: str) -> None:
            stdin.write(" ||| ".join(fields) + "\n")
            stdin.flush()

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
    """Returns the text in one line without field separators."""
    return " ".join(text.replace("|||", " ").split())
