"""Tells whether a run has collapsed: its score is that of a model that has learned nothing."""

from __future__ import annotations

import math

from bench.core.record import Record
from bench.core.record_parts import ScoresPart

WIDTH = 2.0
"""Standard errors above the level of chance up to which a score is no better than chance."""

CORRELATIONS = ("matthews", "pearson")
"""Metrics that are 0 for outputs that have nothing to do with the labels; their standard error
there is 1/√n."""


def collapsed(record: Record) -> bool:
    """Tells whether a done record's score is within two standard errors of chance, or below it.

    Chance is the majority class for accuracy and F1 (the task returns its share as `majority`), and
    0 for correlations. A metric without such a level never collapses. A mean has collapsed if one
    of its members has.
    """
    return any(_no_better(member.scores) for member in record.members if member.scores)


def _no_better(scores: ScoresPart) -> bool:
    level = _level(scores)
    # F1 of all positives is high; its task tells the accuracy, too.
    value = scores.all.get("accuracy", 1.0) if scores.metric == "f1" else scores.value
    return level is not None and value <= sum(level)


def _level(scores: ScoresPart) -> tuple[float, float] | None:
    """Returns chance and twice its standard error; None where the metric has no such level."""
    if not scores.n:
        return None
    if scores.metric in CORRELATIONS:
        return 0.0, WIDTH / math.sqrt(scores.n)
    majority = scores.all.get("majority")
    if majority is None or scores.metric not in ("accuracy", "f1"):
        return None
    return majority, WIDTH * math.sqrt(majority * (1.0 - majority) / scores.n)
