"""Classification and regression metrics behind the interface of `evaluate`.

`evaluate.load(name)` downloads code; these do not. scikit-learn and scipy do the arithmetic.
"""

from __future__ import annotations

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _accuracy(predicted, gold):
    return {"accuracy": accuracy_score(gold, predicted)}


def _accuracy_f1(predicted, gold):
    if not set(gold) <= {0, 1}:  # GLUE reports no F1 for three classes
        return _accuracy(predicted, gold)
    return _accuracy(predicted, gold) | {"f1": f1_score(gold, predicted, zero_division=0)}


def _matthews(predicted, gold):
    return {"matthews": matthews_corrcoef(gold, predicted)} | _accuracy(predicted, gold)


def _correlation(predicted, gold):
    if np.ptp(predicted) == 0:  # a constant correlates with nothing; scipy would say NaN
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": pearsonr(predicted, gold).statistic,
        "spearman": spearmanr(predicted, gold).statistic,
    }


METRICS = {
    "accuracy": _accuracy_f1,
    "f1": _accuracy_f1,
    "matthews": _matthews,
    "pearson": _correlation,
}
"""Primary metric → all that is reported with it: GLUE's own (arXiv 1804.07461, table 1)."""


class Score(evaluate.Metric):
    """The metrics that go with a primary one, as fractions (correlations in −1…1).

    Args:
        config_name: a key of METRICS.
    """

    def _info(self):
        kind = Value("float32" if self.config_name == "pearson" else "int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references, one number each",
            features=Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions, references):
        found = METRICS[self.config_name](np.asarray(predictions), np.asarray(references))
        return {name: float(value) for name, value in found.items()}


def score(metric: str, predictions, references) -> dict[str, float]:
    """All metrics that go with `metric`."""
    # Without evaluate's cache files: nothing is shared between processes here.
    return Score(config_name=metric, keep_in_memory=True)._compute(predictions, references)
