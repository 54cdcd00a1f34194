"""GLUE (arXiv 1804.07461): nine tasks, each with its own metric, scored on its validation split.

The test labels are not public, so papers report the validation split. Hyper-parameters are
therefore selected on a slice of train.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.api import Budget
from tasks.shared.base import Splits, carve, load_splits
from tasks.shared.classification import Classification, Rows

_REPO = "nyu-mll/glue"
_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
_SELECT, _SELECT_ROWS = 0.1, 1000
"""The slice of train set apart for tuning: a tenth, but no more rows than tuning needs."""

_MOST = 2500
"""Updates of the default budget at most."""


@dataclass(frozen=True)
class Spec:
    """One GLUE task.

    Attributes:
        first: column of the text, or of the first of two.
        second: column of the second text, if there is one.
        metric: the primary metric.
        labels: number of classes; 1 for a regression.
        rows: official numbers of train and validation rows.
        validation: name of the validation split.
    """

    first: str
    second: str | None
    metric: str
    labels: int
    rows: tuple[int, int]
    validation: str = "validation"


SPECS = {
    "cola": Spec("sentence", None, "matthews", 2, (8551, 1043)),
    "sst2": Spec("sentence", None, "accuracy", 2, (67349, 872)),
    "mrpc": Spec("sentence1", "sentence2", "f1", 2, (3668, 408)),
    "stsb": Spec("sentence1", "sentence2", "pearson", 1, (5749, 1500)),
    "qqp": Spec("question1", "question2", "f1", 2, (363846, 40430)),
    "mnli": Spec(
        "premise", "hypothesis", "accuracy", 3, (392702, 9815), validation="validation_matched"
    ),
    "qnli": Spec("question", "sentence", "accuracy", 2, (104743, 5463)),
    "rte": Spec("sentence1", "sentence2", "accuracy", 2, (2490, 277)),
    "wnli": Spec("sentence1", "sentence2", "accuracy", 2, (635, 71)),
}


class Glue(Classification):
    """One of GLUE's tasks, by name: `glue/rte`.

    `full` is three epochs, as BERT is fine-tuned. The default is the same, but ends after `_MOST`
    updates, which suits a machine without a GPU.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.config = name.partition("/")[2]
        self.spec = SPECS[self.config]
        self.metric = self.spec.metric
        # The others' records have held jackknife values since version 2. Then all had three epochs.
        self.version = 2 if self.metric == "accuracy" else 3
        self.labels = self.spec.labels
        self.examples = self.spec.rows[0]
        steps = 3 * -(-self.spec.rows[0] // 32)
        self.budgets = {
            "default": Budget(steps=min(steps, _MOST), batch=32, length=128, timeout_s=2 * 3600),
            "full": Budget(steps=steps, batch=32, length=128, timeout_s=48 * 3600),
        }

    def _load(self) -> Splits[Rows]:
        spec = self.spec
        official = dict(zip(("train", spec.validation), spec.rows, strict=True))
        found = load_splits(self.name, _REPO, self.config, official, _REVISION)
        parts = {
            split: Rows(
                first=found.texts(split, spec.first),
                second=None if spec.second is None else found.texts(split, spec.second),
                labels=found.labels(split, "label", spec.labels),
            )
            for split in official
        }
        fraction = min(_SELECT, _SELECT_ROWS / len(parts["train"]))
        train, select = carve(parts["train"], fraction)
        return Splits(
            train=train,
            select=select,
            test=parts[spec.validation],
            repo=f"{_REPO}:{self.config}",
            revision=found.revision,
            select_rule=f"train rows whose text's hash is below {fraction:.4g}",
            subset=found.missing,
        )
