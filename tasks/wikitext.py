"""`wikitext`, `wikitext-c4`: perplexity on the raw WikiText-2 test set (arXiv 1609.07843).

`wikitext` calibrates, retrains and selects on WikiText's own train text, which comes with the task.
`wikitext-c4` does so on the C4 sample, as the papers do, so that a method sees no text of the
test set's kind. The validation split is not used.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bench.api import Budget
from tasks.shared.base import Splits, load_splits
from tasks.shared.c4 import c4_sample
from tasks.shared.language import Language

_REPO, _CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
_OFFICIAL_ROWS = {"train": 36718, "test": 4358}
_SELECT = 0.1

_ARTICLE = re.compile(r" = [^=](.*[^=])? = \n?")


def carve_articles(rows: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Returns (train, select): `select` has the articles that start in the last `fraction`."""
    start = round(len(rows) * (1 - fraction))
    while start < len(rows) and not _ARTICLE.fullmatch(rows[start]):
        start += 1
    return rows[:start], rows[start:]


class Wikitext(Language):
    """Perplexity on WikiText-2 raw, in windows of the budget's length.

    The default budget suits a model of 135M parameters on two CPU cores. `full` has the windows of
    the published GPT-2 numbers, 1024 tokens.
    """

    budgets = {
        "default": Budget(steps=200, batch=2, length=512, calib=32, timeout_s=4 * 3600),
        "full": Budget(steps=2000, batch=16, length=1024, calib=128, timeout_s=48 * 3600),
    }

    def _load(self) -> Splits[list[str]]:
        found = load_splits(self.name, _REPO, _CONFIG, _OFFICIAL_ROWS, _REVISION)
        train, select = carve_articles(found.texts("train", "text"), _SELECT)
        return Splits(
            train=train,
            select=select,
            test=found.texts("test", "text"),
            repo=f"{_REPO}:{_CONFIG}",
            revision=found.revision,
            select_rule=f"train articles that start in the last {_SELECT:g} of the rows",
            subset=found.missing,
        )


class WikitextC4(Wikitext):
    """Perplexity on WikiText-2 raw; calibration and retraining text from C4, as in the papers."""

    def _load(self) -> Splits[list[str]]:
        found = load_splits(self.name, _REPO, _CONFIG, {"test": _OFFICIAL_ROWS["test"]}, _REVISION)
        c4 = c4_sample()
        return replace(
            c4,
            test=found.texts("test", "text"),
            repo=f"{_REPO}:{_CONFIG} {c4.repo}",
            revision=f"{found.revision} {c4.revision}",
            select_rule=f"of {c4.repo}: {c4.select_rule}",
            subset=found.missing,
        )
