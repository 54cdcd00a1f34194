"""`wikitext`, `wikitext-c4`: perplexity on the raw WikiText-2 test set (arXiv 1609.07843).

The papers calibrate on C4 and select on the data that they report. `wikitext` calibrates, retrains
and selects on WikiText's own train text, which is there wherever the task is; `wikitext-c4` does so
on the C4 sample, so that a method has seen nothing of the kind. The validation split is not used.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bench.api import Budget
from bench.sources import hub
from tasks.shared.c4 import c4_sample
from tasks.shared.language import Language, Texts

REPO, CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
ROWS = {"train": 36718, "test": 4358}
SELECT = 0.1

_ARTICLE = re.compile(r" = [^=](.*[^=])? = \n?")


def carve(rows: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """(train, select): the last articles, from the first that starts in the last `fraction`."""
    start = round(len(rows) * (1 - fraction))
    while start < len(rows) and not _ARTICLE.fullmatch(rows[start]):
        start += 1
    return rows[:start], rows[start:]


class Wikitext(Language):
    """Perplexity on WikiText-2 raw, in windows of the budget's length.

    The default budget suits a model of 135M parameters on two CPU cores; `full` has the windows of
    the published GPT-2 numbers.
    """

    budgets = {
        "default": Budget(steps=200, batch=2, length=512, calib=32, timeout_s=4 * 3600),
        "full": Budget(steps=2000, batch=16, length=1024, calib=128, timeout_s=48 * 3600),
    }

    def _load(self) -> Texts:
        parts, missing = {}, []
        for split, official in ROWS.items():
            found, revision = hub.load_split(REPO, CONFIG, split, REVISION)
            parts[split] = list(found["text"])
            if len(found) < official:
                missing.append(f"{split} {len(found)} of {official} rows")
        train, select = carve(parts["train"], SELECT)
        return Texts(
            train=train,
            select=select,
            test=parts["test"],
            repo=f"{REPO}:{CONFIG}",
            revision=revision,
            select_rule=f"train articles that start in the last {SELECT:g} of the rows",
            subset=", ".join(missing),
        )


class WikitextC4(Wikitext):
    """Perplexity on WikiText-2 raw; calibration and retraining text from C4, as in the papers."""

    def _load(self) -> Texts:
        found, revision = hub.load_split(REPO, CONFIG, "test", REVISION)
        c4 = c4_sample()
        return replace(
            c4,
            test=list(found["text"]),
            repo=f"{REPO}:{CONFIG} {c4.repo}",
            revision=f"{revision} {c4.revision}",
            select_rule=f"of {c4.repo}: {c4.select_rule}",
        )
