"""Outcomes of single items for a metric that is no mean of items (F1, Matthews, Pearson, BLEU).

An item's jackknife value is what the item adds to the score (Tukey 1958). With n items, the score
θ, and θ₋ᵢ without item i,

    vᵢ = θ + (n − 1) (mean of all θ₋ⱼ − θ₋ᵢ).

The mean of the values is θ exactly. Their variance divided by n is the jackknife's variance of θ.
The values of a mean are the items themselves, so whoever tests a mean of items can test these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def values(score: float, without: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Returns the items' values from the score and the scores `without` each item."""
    left = np.asarray(without, dtype=np.float64)
    found: list[float] = (score + (len(left) - 1) * (left.mean() - left)).tolist()
    return found


def recomputed(score: Callable[[Indices], float], items: Sequence[Hashable]) -> list[float]:
    """Returns the items' values by scoring anew without each, once for items that are equal.

    Args:
        score: returns the score of the items at some indices.
        items: all items; items that compare equal must count alike.
    """
    every = np.arange(len(items))
    if len(every) == 1:
        return [score(every)]
    known: dict[Hashable, float] = {}
    for i, item in enumerate(items):
        if item not in known:
            known[item] = score(np.delete(every, i))
    return values(score(every), [known[item] for item in items])
