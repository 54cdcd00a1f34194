"""`reviews`: is a sentence from a film or product review positive or negative?

Sentences with human ratings from −4 to 4 (Hutto & Gilbert, ICWSM 2014), shipped in the source
archive of the package vaderSentiment. Its film sentences come from the source that SST-2 was
drawn from, so the two must never be mixed.
"""

from __future__ import annotations

from bench.sources import hub, pypi_assets
from tasks.shared.base import position
from tasks.shared.classification import Classification, Data, Rows

FILES = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
NEUTRAL = 0.25
SELECT, TEST = 0.10, 0.15


def read(lines: list[str]) -> dict[str, int]:
    """`id <tab> mean rating <tab> text` lines → text: label, the first of duplicates kept.

    The label is the sign of the rating; sentences rated within ±0.25 are dropped.
    """
    labels: dict[str, int] = {}
    for line in lines:
        fields = line.rstrip("\r\n").split("\t", 2)
        if len(fields) != 3:
            continue
        rating, text = float(fields[1]), " ".join(fields[2].split())
        if text and abs(rating) >= NEUTRAL:
            labels.setdefault(text, int(rating > 0))
    return labels


class Reviews(Classification):
    """Sentence sentiment; accuracy, with F1 and the majority baseline beside it."""

    def _load(self) -> Data:
        repo = "cjhutto/vaderSentiment"
        folder = hub.fetch(repo)
        labels: dict[str, int] = {}
        for name in FILES:
            with open(folder / name, encoding="utf-8") as file:
                labels = read(list(file)) | labels
        splits: dict[str, dict[str, int]] = {"test": {}, "select": {}, "train": {}}
        for text, label in labels.items():
            # The case of a sentence is not a difference between train and test.
            place = position(text.lower())
            name = "test" if place < TEST else "select" if place < TEST + SELECT else "train"
            splits[name][text] = label
        rows = {name: Rows(list(part), None, list(part.values())) for name, part in splits.items()}
        return Data(
            **rows,
            repo=repo,
            revision=pypi_assets.ASSETS[repo].revision,
            select_rule=f"hash of the text in [{TEST}, {TEST + SELECT})",
        )
