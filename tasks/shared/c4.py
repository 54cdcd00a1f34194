"""Running text for calibration and retraining of tasks that bring none: a sample of C4.

The papers calibrate on C4's first shard (METHODS.md §5). A mirror may hold a small sample of it as
`calibration/c4_sample`; the hub's shard is read as a stream, and only as far as is needed.
"""

from __future__ import annotations

from itertools import islice

from bench.sources import hub
from tasks.shared.language import Texts

C4 = "calibration/c4_sample"
HUB, REVISION = "allenai/c4", "607bd4c8450a42878aa9ddc051a65a055450ef87"
SHARD = "en/c4-train.00000-of-01024.json.gz"
ROWS = 20_000
SELECT = 0.1


def c4_sample() -> Texts:
    """The sample's rows, the last tenth set apart as `select`; there is no test split.

    Raises:
        BenchError: kind `offline` when neither the sample nor the hub can be had.
    """
    if hub.find(C4):
        found, revision = hub.load_split(C4, "default", "train", "")
        rows, repo = list(found["text"]), C4
    else:
        rows, repo, revision = _streamed(), f"{HUB}:{SHARD}", REVISION
    cut = round(len(rows) * (1 - SELECT))
    rule = f"the last {SELECT:g} of the rows"
    return Texts(rows[:cut], rows[cut:], [], repo, revision, rule)


def _streamed() -> list[str]:
    import datasets

    hub.give_up_early()
    try:
        stream = datasets.load_dataset(
            HUB, data_files={"train": SHARD}, split="train", streaming=True, revision=REVISION
        )
        return [row["text"] for row in islice(stream, ROWS)]
    except (OSError, RuntimeError, ValueError):
        raise hub.offline(HUB) from None
