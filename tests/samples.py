"""A valid record to vary, and a whole study of records that look like real ones."""

import math
import random

from bench.api import Budget, Cell
from bench.core.record import Record
from bench.core.record_parts import (
    Bytes,
    Code,
    Cost,
    Data,
    Failure,
    Macs,
    Model,
    Params,
    ScoresPart,
    Sparsity,
    Speed,
    Trainable,
    Versions,
)
from bench.planning import registry
from methods import BUILTIN

OLD = Versions(method=0, task=0)


def versions(cell):
    """The present versions of a cell's method and task."""
    if not registry.is_known(cell):
        return Versions(method=1, task=1)
    method, task = registry.method(cell.method), registry.task(cell.task)
    return Versions(method=method.version, task=task.version)


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
        "versions": versions(made),
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
        sparsity=Sparsity(
            **dict.fromkeys(("overall", "min_layer", "max_layer"), made.sparsity), pattern_ok=True
        ),
        macs=Macs(dense=10_000, effective=6_000, head=10, tokens=64),
        bytes=Bytes(dense=4000),
        cost=Cost(train_s=10, prune_s=0, eval_s=1, peak_bytes=2**30),
        data=Data(repo="r", revision="1", fingerprint="f", select="s"),
        model=Model(source="m", revision="1", weights_sha256="w"),
        **common,
    )


MACHINE = "some CPU of 2 cores"
ONE_SHOT = (
    "random",
    "magnitude",
    "wanda",
    "sparsegpt",
    "owl",
    "dlp",
    "alphapruning",
    "ria",
    "admm",
    "alps",
    "dsnot",
    "sparseswaps",
)
UNITS = ("wanda-sp", "flap", "shortgpt", "sleb")
STUDIED = tuple(name for name in BUILTIN if name not in UNITS)
"""Methods that remove units alone have no row at the levels of a study."""
LEVELS = (("unstructured", 0.5), ("unstructured", 0.9), ("2:4", 0.5))


def study(
    task="reviews", model="minilm-l6", seeds=(1, 2, 3), levels=LEVELS, items=300, falls=False
):
    """Records of the methods in `STUDIED`, with scores and costs that look like real ones.

    Pure: the same arguments give the same records.
    """
    rng = random.Random(f"{task} {model}")
    found = []
    for number, method in enumerate(STUDIED):
        skill = rng.gauss(0, 0.02)
        full = method in ("dense", "gmp", "movement", "l0", "platon", "obert")
        for pattern, sparsity in (("dense", 0.0),) if method == "dense" else levels:
            lost = sparsity**4 * (0.3 if method in ONE_SHOT else 0.12) + (pattern == "2:4") * 0.01
            share = 0 if method in ONE_SHOT else 1 if full else 0.002 * (number + 1)
            for seed in seeds:
                value = 0.865 + (sparsity > 0) * skill - lost + rng.gauss(0, 0.006)
                found.append(
                    _costly(
                        record(
                            20 * math.exp(8 * (0.865 - value)) if falls else value,
                            items="".join(rng.choices("01", (1 - value, value), k=items)),
                            task=task, model=model, method=method,
                            pattern=pattern, sparsity=sparsity, seed=seed,
                        ),
                        share, number, falls,
                    )
                )  # fmt: skip
    return found


def _costly(made, share, number, falls):
    total, prunable, macs = 22_700_000, 10_600_000, 1_400_000_000
    kept = 1 - made.cell.sparsity
    nonzero = round(prunable * kept)
    stored = total - prunable + nonzero
    fast = 0.7 if made.cell.pattern == "2:4" else 1.0
    jitter = 1 + 0.02 * math.sin(number + made.cell.seed)
    metric = {"metric": "perplexity", "higher_is_better": False, "items": ""} if falls else {}
    update = {
        "scores": {"n": len(made.scores.items) or 300, **metric},
        "params": {
            "total": total, "prunable": prunable, "nonzero": nonzero, "stored": stored,
            "trainable": Trainable(body=round(total * share), head=770),
        },
        "sparsity": dict.fromkeys(("overall", "min_layer", "max_layer"), 1 - kept),
        "macs": {
            "dense": macs, "effective": round(macs * (0.05 + 0.95 * kept)),
            "realizable": round(macs * fast), "train": round(3 * macs * (1 + share)), "tokens": 64,
        },
        "bytes": {"dense": 4 * total, "stored": round(4 * stored * 1.03)},
        "cost": {
            "train_s": 40.0 * jitter + 9 * number if share else 0.0,
            "prune_s": 0.0 if share else 2.0 + number, "dense_s": 0.0 if share else 40.0 * jitter,
        },
    }  # fmt: skip
    parts = {name: getattr(made, name).model_copy(update=new) for name, new in update.items()}
    speed = [
        Speed(
            hardware=MACHINE, dtype="float32", form="2:4 kernel" if fast < 1 else "dense",
            batch=batch, length=64, ms_p50=ms * fast * jitter, ms_p95=1.2 * ms * jitter,
            dense_ms_p50=ms,
        )
        for batch, ms in ((1, 6.0), (32, 120.0))
    ]  # fmt: skip
    env = {"cpu": MACHINE, "threads": 2, "train_dtype": "float32"}
    return made.model_copy(update={**parts, "speed": speed, "env": env})
