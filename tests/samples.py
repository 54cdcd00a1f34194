"""A valid record to vary."""

from bench.api import Budget, Cell
from bench.record import (
    Bytes,
    Code,
    Cost,
    Data,
    Failure,
    Macs,
    Model,
    Params,
    Record,
    ScoresPart,
    Sparsity,
    Trainable,
    Versions,
)


def record(value=0.85, failed=False, items="", **cell):
    fields = {
        "task": "reviews",
        "model": "minilm-l6",
        "method": "pst",
        "pattern": "unstructured",
        "sparsity": 0.5,
    }
    made = Cell(**(fields | cell))
    common = {
        "cell": made,
        "key": made.key,
        "versions": Versions(method=1, task=1),
        "code": Code(git="0" * 40, dirty=False, method_sha256="0" * 64),
        "time": "2026-01-01T00:00:00Z",
    }
    if failed:
        return Record(status="failed", error=Failure(kind="oom", message="no memory"), **common)
    return Record(
        status="done",
        budget=Budget(steps=300, batch=32, length=64),
        hyper={"lr": 1.5e-4},
        scores=ScoresPart(
            metric="accuracy", higher_is_better=True, value=value, all={}, n=100, items=items
        ),
        params=Params(
            total=1000, prunable=800, nonzero=400, stored=600, trainable=Trainable(body=30, head=2)
        ),
        sparsity=Sparsity(overall=0.5, min_layer=0.5, max_layer=0.5, pattern_ok=True),
        macs=Macs(dense=10_000, effective=6_000, head=10, tokens=64),
        bytes=Bytes(dense=4000),
        cost=Cost(train_s=10, prune_s=0, eval_s=1, peak_bytes=2**30),
        data=Data(repo="r", revision="1", fingerprint="f", select="s"),
        model=Model(source="m", revision="1", weights_sha256="w"),
        **common,
    )
