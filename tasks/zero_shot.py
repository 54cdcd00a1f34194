"""`zero-shot`: multiple choice by log-likelihood, with lm-eval's own task definitions.

Prompts, choices and metrics are lm-eval's, so its command line gives the same numbers for the
exported model. Accuracy is `acc`, as the pruning papers report it. Where lm-eval defines
`acc_norm`, it is reported too. `zero-shot` is AST's suite: the mean over seven sets, with PIQA and
LAMBADA measured too. `zero-shot/<set>` is one set.

Methods may not see training data of these sets. Calibration and retraining take the C4 sample
(`tasks.shared.c4`), and hyper-parameters are chosen on `wikitext`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bench.api import BenchError, Budget, Scores, Source, Split
from bench.core import provenance
from tasks.metrics import jackknife
from tasks.shared.base import Splits
from tasks.shared.c4 import C4_SAMPLE, c4_sample
from tasks.shared.language import Language
from tasks.shared.zero_shot_sets import SETS, ZeroShotSet, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AST_SETS = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The seven sets of AST's Table 2 (arXiv 2407.20584)."""


class ZeroShot(Language):
    """Accuracy on sets of lm-eval; `zero-shot/<set>` is one of them.

    Attributes:
        known_sets: the sets by lm-eval's name.
        mean_over: the names of the sets whose mean accuracy is the score.
    """

    known_sets: ClassVar[Mapping[str, ZeroShotSet]] = SETS
    mean_over: ClassVar[Sequence[str]] = AST_SETS

    version = 1
    metric = "accuracy"
    twin = "tiny/zero-shot"
    higher_is_better = True
    budgets = {
        "default": Budget(steps=200, batch=2, length=512, calib=32, timeout_s=6 * 3600),
        "full": Budget(steps=2000, batch=16, length=1024, calib=128, timeout_s=96 * 3600),
    }

    def __init__(self, name: str) -> None:
        super().__init__(name)
        chosen = name.partition("zero-shot/")[2]
        self.averaged = [chosen] if chosen else list(self.mean_over)
        self.sets = [self.known_sets[chosen]] if chosen else list(self.known_sets.values())
        self.limit = max(s.rows for s in self.sets)
        # The records of the mean have held jackknife values since version 2.
        self.version = 1 if len(self.sets) == 1 else 2

    def prepare(self) -> None:
        """Fetches and checks the rows.

        Raises:
            BenchError: a row is wrong, or kind `offline` when no source has the rows.
        """
        for wanted in self.sets:
            load(wanted)

    def _load(self) -> Splits[list[str]]:
        return c4_sample()

    def source(self) -> Source:
        """Returns where the scored rows came from, with a sha256 over all of them."""
        loaded = {wanted.task: load(wanted) for wanted in self.sets}
        rows = ({"set": task, **row} for task, found in loaded.items() for row in found.rows)
        return Source(
            repo=" ".join(f"{s.repo}:{s.config}" for s in self.sets),
            revision=" ".join(sorted({found.revision for found in loaded.values()})),
            fingerprint=provenance.rows_sha256(rows),
            select=f"none; calibration and retraining text: {C4_SAMPLE}",
            subset=", ".join(found.subset for found in loaded.values() if found.subset),
        )

    @torch.no_grad()
    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Scores every set with lm-eval.

        `items` goes set by set and row by row: 1 where the right choice is the likeliest. Where
        the score is a mean over sets, they are its jackknife values.
        `budget.items` limits each set to its first rows.

        Raises:
            BenchError: a split other than `test`.
        """
        if split != "test":
            raise BenchError(f"{self.name} has no {split} slice; tune on wikitext")
        limit = (budget or self.budgets["default"]).items
        harness = import_lm_eval()
        from tasks.shared.shared_prefix_lm import SharedPrefixLM

        dtype = torch.get_autocast_dtype(device.type)
        lm = SharedPrefixLM(
            pretrained=model,
            tokenizer=tok,
            mixed_precision_dtype=dtype if torch.is_autocast_enabled(device.type) else None,
        )
        with tempfile.TemporaryDirectory(prefix="sparsebench-") as folder:
            manager, tasks = self.definitions(Path(folder))
            found = harness.simple_evaluate(
                lm, tasks=tasks, limit=limit, bootstrap_iters=0, task_manager=manager
            )
        scores = self._scores(found["results"], found["samples"])
        notes = (f"the first {limit} rows of each set",) if limit else ()
        return replace(scores, notes=notes)

    def definitions(self, folder: Path) -> tuple[Any, list[str]]:
        """Writes task definitions to `folder`; returns lm-eval's task manager and their paths.

        Each is a YAML file that includes lm-eval's definition and names the folder of the rows.
        Splits that zero-shot scoring does not read are removed, because a folder may lack them.
        """
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
        paths = []
        for wanted in self.sets:
            rows = folder / f"{wanted.task}.parquet"
            load(wanted).rows.to_parquet(rows)
            definition = {
                "include": str(manager.task_index[wanted.task].yaml_path),
                **rows_of(wanted.split, "parquet", rows),
                "training_split": None,
                "validation_split": None,
                "test_split": None,
                f"{wanted.split}_split": wanted.split,
            }
            path = folder / f"{wanted.task}.yaml"
            path.write_text(json.dumps(definition))  # JSON is YAML
            paths.append(str(path))
        return manager, paths

    def _scores(self, results: dict[str, Any], samples: dict[str, Any]) -> Scores:
        values: dict[str, float] = {}
        right: dict[str, str] = {}
        for wanted in self.sets:
            for metric, value in results[wanted.task].items():
                name, _, rule = metric.partition(",")
                if rule == "none" and not name.endswith("_stderr"):
                    # `acc` gets the set's own name, acc_norm and perplexity a suffix.
                    other = "" if name == "acc" else f"_{name.removeprefix('acc_')}"
                    values[wanted.task + other] = float(value)
            rows = sorted(samples[wanted.task], key=lambda sample: sample["doc_id"])
            right[wanted.task] = "".join("01"[round(row["acc"])] for row in rows)
        mean = sum(values[name] for name in self.averaged) / len(self.averaged)
        n = sum(map(len, right.values()))
        items = right[self.sets[0].task] if len(right) == 1 else mean_items(right, self.averaged)
        return Scores(values={"accuracy": mean, **values}, n=n, items=items)


def mean_items(right: Mapping[str, str], averaged: Sequence[str]) -> list[float]:
    """Returns the jackknife values of the mean accuracy of the `averaged` sets.

    An item of another set leaves the mean as it is, and so does the only item of a set.

    Args:
        right: for each set, 1 where an item is right and 0 elsewhere.
        averaged: names of sets.
    """
    accuracy = {name: row.count("1") / len(row) for name, row in right.items()}
    mean = sum(accuracy[name] for name in averaged) / len(averaged)
    without = []
    for name, row in right.items():
        share = (name in averaged) / len(averaged) / max(len(row) - 1, 1)
        moved = {item: mean + share * (accuracy[name] - int(item)) for item in "01"}
        without += [moved[item] for item in row]
    return jackknife.values(mean, without)


def rows_of(split: str, kind: str, file: Path) -> dict[str, Any]:
    """Returns the part of a task definition that says where the rows of a split lie.

    lm-eval copies them into a cache. It is beside the file, so that no later run finds it.
    """
    files = {"data_files": {split: str(file)}, "cache_dir": str(file.parent / "cache")}
    return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": files}


def import_lm_eval() -> Any:
    """Imports lm-eval, which takes seconds, and silences its log."""
    import lm_eval as harness

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return harness
