"""From a model to a folder that `from_pretrained` reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from bench.weights.unstacked import check_plain_experts, stacked


@contextmanager
def saved_form(model: PreTrainedModel) -> Iterator[None]:
    """Gives a plain model the form that the architecture has, inside the context.

    Raises:
        BenchError: an expert has a side branch, for which that form has no place.
    """
    check_plain_experts(model)
    with stacked(model):
        yield


def save_model(model: PreTrainedModel, folder: Path | str) -> None:
    """Writes config and weights as the installed transformers does, to be read by it alone.

    Raises:
        BenchError: as `saved_form`.
    """
    with saved_form(model):
        model.save_pretrained(folder)
