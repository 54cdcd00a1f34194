"""A sample of C4: calibration and retraining text of tasks that have none of their own.

SparseGPT (arXiv 2301.00774) and Wanda (arXiv 2306.11695) calibrate on C4's first shard. A mirror
may hold a small sample of it as `calibration/c4_sample`. Otherwise the hub's shard is read as a
stream, and only its first rows.
"""

from __future__ import annotations

from itertools import islice

from bench.sources import hub
from tasks.shared import checks
from tasks.shared.base import Splits

C4_SAMPLE = "calibration/c4_sample"
_REPO, _REVISION = "allenai/c4", "607bd4c8450a42878aa9ddc051a65a055450ef87"
_SHARD = "en/c4-train.00000-of-01024.json.gz"
_ROWS = 20_000
_SELECT = 0.1


def c4_sample() -> Splits[list[str]]:
    """Loads the sample; the last tenth of the rows is `select`, and `test` is empty.

    Raises:
        BenchError: kind `offline` when neither the sample nor the hub can be had.
    """
    if hub.find(C4_SAMPLE):
        found, revision = hub.load_split(C4_SAMPLE, "default", "train", "")
        rows, repo = checks.texts(f"{C4_SAMPLE} train", "text", found["text"]), C4_SAMPLE
    else:
        rows, repo, revision = _streamed(), f"{_REPO}:{_SHARD}", _REVISION
    cut = round(len(rows) * (1 - _SELECT))
    rule = f"the last {_SELECT:g} of the rows"
    return Splits(rows[:cut], rows[cut:], [], repo, revision, rule)


def _streamed() -> list[str]:
    import datasets

    hub.give_up_early()
    try:
        stream = datasets.load_dataset(
            _REPO, data_files={"train": _SHARD}, split="train", streaming=True, revision=_REVISION
        )
        return [row["text"] for row in islice(stream, _ROWS)]
    except (OSError, RuntimeError, ValueError):
        raise hub.offline(_REPO) from None
