"""`reviews`: is a sentence from a film or product review positive or negative?

The sentences have human ratings from −4 to 4 (Hutto & Gilbert, ICWSM 2014). They come with the
source archive of the package vaderSentiment. SST-2 was drawn from the same film reviews: never mix
the two.
"""

from __future__ import annotations

from bench.sources import hub, pypi_assets
from tasks.shared.base import Splits, position
from tasks.shared.classification import Classification, Rows

_REPO = "cjhutto/vaderSentiment"
_FILES = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
_NEUTRAL = 0.25
_SELECT, _TEST = 0.10, 0.15


def read_labels(lines: list[str]) -> dict[str, int]:
    """Reads `id <tab> mean rating <tab> text` lines; returns each text's label.

    The label is 1 for a positive rating and 0 for a negative one. Sentences rated between −0.25
    and 0.25 are dropped, and of equal sentences the first one counts.
    """
    labels: dict[str, int] = {}
    for line in lines:
        fields = line.rstrip("\r\n").split("\t", 2)
        if len(fields) != 3:
            continue
        rating, text = float(fields[1]), " ".join(fields[2].split())
        if text and abs(rating) >= _NEUTRAL:
            labels.setdefault(text, int(rating > 0))
    return labels


class Reviews(Classification):
    """Sentence sentiment: accuracy, with F1 and the majority baseline beside it."""

    def _load(self) -> Splits[Rows]:
        folder = hub.fetch(_REPO)
        labels: dict[str, int] = {}
        for name in _FILES:
            with open(folder / name, encoding="utf-8") as file:
                labels = read_labels(list(file)) | labels
        splits: dict[str, dict[str, int]] = {"test": {}, "select": {}, "train": {}}
        for text, label in labels.items():
            # In lower case, so that sentences that differ in case alone stay in one split.
            place = position(text.lower())
            name = "test" if place < _TEST else "select" if place < _TEST + _SELECT else "train"
            splits[name][text] = label
        rows = {name: Rows(list(part), None, list(part.values())) for name, part in splits.items()}
        return Splits(
            train=rows["train"],
            select=rows["select"],
            test=rows["test"],
            repo=_REPO,
            revision=pypi_assets.ASSETS[_REPO].revision,
            select_rule=f"hash of the text in [{_TEST}, {_TEST + _SELECT})",
        )
