"""`zero-shot`: multiple choice by log-likelihood, with lm-eval's own task definitions.

Prompts, choices and metrics are lm-eval's, so a number here is what its command line gives for the
exported model. Accuracy is `acc`, as the pruning papers report it; `acc_norm` stands beside it
where the task defines it. `zero-shot` is AST's suite: the mean over seven sets, with PIQA and
LAMBADA measured too; `zero-shot/<set>` is one set.

The sets have no training data that a method may see: calibration and retraining take the C4 sample
(`tasks.shared.c4`), and hyper-parameters are chosen on `wikitext`.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.api import BenchError, Budget, Scores, Source
from bench.core import provenance
from tasks.shared.c4 import C4, c4_sample
from tasks.shared.language import Language, Texts
from tasks.shared.zero_shot_sets import SETS, Found, Set, find

MEAN = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The seven of AST's Table 2 (arXiv 2407.20584)."""


class ZeroShot(Language):
    """Accuracy on sets of lm-eval; a name after the slash chooses one."""

    version = 1
    metric = "accuracy"
    higher_is_better = True
    budgets = {
        "default": Budget(steps=200, batch=2, length=512, calib=32, timeout_s=6 * 3600),
        "full": Budget(steps=2000, batch=16, length=1024, calib=128, timeout_s=96 * 3600),
    }

    def __init__(self, name: str) -> None:
        super().__init__(name)
        _, _, one = name.partition("/")
        self.sets: list[Set] = [SETS[one]] if one else list(SETS.values())
        self.averaged = [one] if one else list(MEAN)
        self.limit = max(s.rows for s in self.sets)

    def prepare(self) -> None:
        """Fetches the rows, and lm-eval's absence is said before anything runs."""
        lm_eval()
        for wanted in self.sets:
            find(wanted)

    def _load(self) -> Texts:
        return c4_sample()

    def source(self) -> Source:
        """Where the scored rows came from, with a sha256 over all of them."""
        found = {wanted: find(wanted) for wanted in self.sets}
        rows = (
            {"set": wanted.task, **row} for wanted, at in found.items() for row in _rows(wanted, at)
        )
        return Source(
            repo=" ".join(f"{s.repo}:{s.config}" for s in self.sets),
            revision=" ".join(sorted({at.revision for at in found.values()})),
            fingerprint=provenance.rows_sha256(rows),
            select=f"none; calibration and retraining text: {C4}",
            subset=", ".join(f"{s.task}: {at.altered}" for s, at in found.items() if at.altered),
        )

    @torch.no_grad()
    def evaluate(self, model, tok, device, split: str = "test", budget=None) -> Scores:
        """Every set by lm-eval; items are 1 where a choice is right, set by set in their order.

        `budget.items` limits each set to its first rows.

        Raises:
            BenchError: another split than `test`.
        """
        if split != "test":
            raise BenchError(f"{self.name} has no {split} slice; tune on wikitext")
        limit = (budget or self.budgets["default"]).items
        harness = lm_eval()
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
        """lm-eval's task manager, and its own definitions pointed at the rows that were found.

        Each is a YAML file that includes lm-eval's and names the folder; splits that zero-shot
        scoring does not read are taken out, because a folder need not have them.
        """
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
        paths = []
        for wanted in self.sets:
            at = find(wanted)
            lines = {
                "include": manager.task_index[wanted.task].yaml_path,
                "dataset_path": at.path,
                "dataset_name": at.config or "null",
                "training_split": "null",
                "validation_split": wanted.split if wanted.split == "validation" else "null",
                "test_split": wanted.split if wanted.split == "test" else "null",
            }
            path = folder / f"{wanted.task}.yaml"
            path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
            paths.append(str(path))
        return manager, paths

    def _scores(self, results: dict[str, Any], samples: dict[str, Any]) -> Scores:
        values: dict[str, float] = {}
        items = ""
        for wanted in self.sets:
            for metric, value in results[wanted.task].items():
                name, _, rule = metric.partition(",")
                if rule == "none" and not name.endswith("_stderr"):
                    # acc is the set's score, acc_norm and perplexity stand beside it.
                    other = "" if name == "acc" else f"_{name.removeprefix('acc_')}"
                    values[wanted.task + other] = float(value)
            rows = sorted(samples[wanted.task], key=lambda sample: sample["doc_id"])
            items += "".join("01"[round(row["acc"])] for row in rows)
        mean = sum(values[name] for name in self.averaged) / len(self.averaged)
        return Scores(values={"accuracy": mean, **values}, n=len(items), items=items)


def _rows(wanted: Set, at: Found) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(at.path, at.config, split=wanted.split)


def lm_eval() -> Any:
    """The module, or one line that says how to install it."""
    try:
        import lm_eval as harness
    except ImportError:
        raise BenchError(
            "zero-shot tasks need lm-eval: pip install 'sparsebench[zero-shot]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return harness
