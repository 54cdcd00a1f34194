"""`tiny/zero-shot`: the synthetic twin of the zero-shot sets, through lm-eval like them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import provenance, seeds
from bench.api import Budget, Source
from tasks.language import Texts
from tasks.tiny import TinyWikitext, lines
from tasks.zero_shot import ZeroShot, lm_eval
from tasks.zero_shot_sets import Set

CHOICES = 4
ENDING = 4

_DEFINITION = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def questions(_: Any = None) -> Iterator[dict[str, Any]]:
    """Lines of `tiny/wikitext`'s chain without their last words, and four endings.

    The wrong ones are endings of other lines; who knows the chain sees that they do not follow.
    """
    draw = random.Random(seeds.derive("tiny/zero-shot"))
    found = [line.split() for line in lines(1500, seeds.derive("tiny/wikitext"))[1200:]]
    for words in found:
        label = draw.randrange(CHOICES)
        endings = [draw.choice(found)[-ENDING:] for _ in range(CHOICES)]
        endings[label] = words[-ENDING:]
        yield {
            "context": " ".join(words[:-ENDING]),
            "choices": [" ".join(ending) for ending in endings],
            "label": label,
        }


class TinyZeroShot(ZeroShot):
    """The twin of `zero-shot`: which ending follows, learnable by retraining on the chain."""

    budgets = {"default": Budget(steps=60, batch=16, length=64, calib=32, timeout_s=300)}

    def __init__(self, name: str) -> None:
        super().__init__("zero-shot")
        self.name = name
        self.sets = [Set("tiny_endings", "synthetic", "default", "test", 300, questions)]
        self.averaged = ["tiny_endings"]
        self.limit = 300

    def prepare(self) -> None:
        """There is nothing to fetch, but lm-eval must be there."""
        lm_eval()

    def _load(self) -> Texts:
        return TinyWikitext("tiny/wikitext").data

    def source(self) -> Source:
        """A sha256 over the questions."""
        return Source(
            repo="synthetic",
            revision=f"version {self.version}",
            fingerprint=provenance.rows_sha256(questions()),
            select="none; calibration and retraining text: tiny/wikitext",
        )

    def definitions(self, folder: Path) -> tuple[Any, list[str]]:
        """lm-eval's task manager, and a definition with its rows beside it."""
        from lm_eval.tasks import TaskManager

        (only,) = self.sets
        rows, path = folder / "rows.jsonl", folder / f"{only.task}.yaml"
        rows.write_text("".join(json.dumps(row) + "\n" for row in questions()))
        path.write_text(_DEFINITION.format(task=only.task, file=rows))
        return TaskManager(include_defaults=False), [str(path)]
