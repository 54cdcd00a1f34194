"""Classification and regression metrics behind the interface of `evaluate`.

`evaluate.load(name)` downloads code; these metrics do not. scikit-learn and scipy do the
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from tasks.metrics import jackknife

Numbers = NDArray[Any]


def _accuracy(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    return {"accuracy": accuracy_score(gold, predicted)}


def _accuracy_f1(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    if not set(gold) <= {0, 1}:  # GLUE reports no F1 for three classes
        return _accuracy(predicted, gold)
    return _accuracy(predicted, gold) | {"f1": f1_score(gold, predicted, zero_division=0)}


def _matthews(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    return {"matthews": matthews_corrcoef(gold, predicted)} | _accuracy(predicted, gold)


def _correlation(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:  # scipy would return NaN for a constant
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": pearsonr(predicted, gold).statistic,
        "spearman": spearmanr(predicted, gold).statistic,
    }


METRICS: dict[str, Callable[[Numbers, Numbers], dict[str, float]]] = {
    "accuracy": _accuracy_f1,
    "f1": _accuracy_f1,
    "matthews": _matthews,
    "pearson": _correlation,
}
"""Primary metric → all that is reported with it: GLUE's own (arXiv 1804.07461, table 1)."""


class ClassificationMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate is not typed
    """The metrics that go with a primary one, as fractions (correlations in −1…1).

    Args:
        config_name: a key of METRICS.
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = Value("float32" if self.config_name == "pearson" else "int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references, one number each",
            features=Features({"predictions": kind, "references": kind}),
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float]
    ) -> dict[str, float]:
        found = METRICS[self.config_name](np.asarray(predictions), np.asarray(references))
        return {name: float(value) for name, value in found.items()}


def classification_scores(
    metric: str, predictions: Sequence[float], references: Sequence[float]
) -> dict[str, float]:
    """Returns `metric`, a key of METRICS, and all that is reported with it."""
    # `compute` would write cache files that processes share; `_compute` does not.
    scorer = ClassificationMetric(config_name=metric, keep_in_memory=True)
    return scorer._compute(predictions, references)


def classification_items(
    metric: str, predictions: Sequence[float], references: Sequence[float]
) -> str | list[float]:
    """Returns an outcome for each item whose mean is `metric`, a key of METRICS.

    For accuracy 1 where the prediction is right, otherwise jackknife values.
    """
    if metric == "accuracy":
        return "".join("01"[p == g] for p, g in zip(predictions, references, strict=True))
    predicted, gold = np.asarray(predictions), np.asarray(references)
    if metric == "pearson":  # numbers: no two items are alike
        whole = _correlation(predicted, gold)[metric]
        return jackknife.values(float(whole), _pearson_without_each(predicted, gold))

    def score(rows: jackknife.Indices) -> float:
        return float(METRICS[metric](predicted[rows], gold[rows])[metric])

    return jackknife.recomputed(score, list(zip(predictions, references, strict=True)))


def _pearson_without_each(x: Numbers, y: Numbers) -> Numbers:
    """Returns Pearson's correlation without each item; 0 where one side is then constant."""
    n = len(x)
    if n == 1:
        return np.zeros(1)
    a, b = x - x.mean(), y - y.mean()
    # Without item i, the mean moves too: a sum of centred products loses aᵢbᵢ n / (n − 1).
    share = n / (n - 1)
    aa, bb, ab = ((u * v).sum() - share * u * v for u, v in ((a, a), (b, b), (a, b)))
    varies = (aa > 1e-12 * (a * a).sum()) & (bb > 1e-12 * (b * b).sum())
    found: Numbers = np.where(varies, ab / np.sqrt(np.where(varies, aa * bb, 1.0)), 0.0)
    return found
