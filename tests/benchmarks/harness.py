"""What the harness itself costs.

    python -m tests.benchmarks.harness [CELLS [RECORDS]]

A script, not a test. It prints medians of a cell's phases on tiny-bert, run as the driver runs it;
`overhead` is all but starting Python with its imports, training and evaluation. Then it writes
synthetic records, and loads, validates and ranks them. It fails where the overhead is above 3 s
or the records take more than 5 s.
"""

import itertools
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from bench.core.store import Store
from bench.engine import isolate
from bench.planning.job import Job
from bench.reporting import leaderboard
from tests import helpers, samples

OTHERS = ("start", "train", "evaluate")


def phases(cell, folder):
    """Seconds from each phase's first word to the next one's; `put` writes the record."""
    told = {"start": time.perf_counter()}
    hear = lambda phase, *_: told.setdefault(phase, time.perf_counter())  # noqa: E731
    record = isolate.run_isolated(Job.resolve(cell), 3600, folder / "log", hear)
    assert record.error is None, record.error
    told["put"] = time.perf_counter()
    Store(folder / "results").put(record)
    told["end"] = time.perf_counter()
    names, times = list(told), list(told.values())
    return {names[i]: times[i + 1] - times[i] for i in range(len(names) - 1)}


def cells(count, folder):
    seconds = defaultdict(list)
    methods = itertools.islice(itertools.cycle(("dense", "magnitude", "pst")), count)
    for method in methods:
        found = phases(helpers.cell(method, budget__steps=5, seed=1), folder)
        for name, value in found.items():
            seconds[name].append(value)
        seconds["overhead"].append(sum(v for k, v in found.items() if k not in OTHERS))
    for name, values in seconds.items():
        print(f"{name:10} {median(values):7.2f} s")
    return median(seconds["overhead"])


def write_records(store, count):
    """Records as a sweep leaves them: nine sparsities, five methods, four tasks, many seeds."""
    tasks = ("glue/rte", "glue/sst2", "glue/cola", "reviews")
    methods = ("dense", "wanda", "magnitude", "pst", "gmp")
    points = list(itertools.product(tasks, methods, range(1, 10)))
    for i in range(count):
        seed, (task, method, level) = 1 + i // len(points), points[i % len(points)]
        dense = method == "dense"  # its nine budgets make nine cells of it
        record = samples.record(
            value=0.5 + level / 100,
            items="01" * 50,
            task=task,
            method=method,
            seed=seed,
            pattern="dense" if dense else "unstructured",
            sparsity=0.0 if dense else level / 10,
            overrides=(("budget.steps", level),) if dense else (),
        )
        path = store.path(record.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json())


def records(count, folder, turns=3):
    """Seconds to load, validate and rank."""
    store = Store(folder / "many")
    write_records(store, count)
    loading, ranking = [], []
    for _ in range(turns):
        start = time.perf_counter()
        found, problems = store.records()
        loading.append(time.perf_counter() - start)
        assert (len(found), problems) == (count, [])
        start = time.perf_counter()
        leaderboard.table(found)
        ranking.append(time.perf_counter() - start)
    print(
        f"{count} records: load and validate {median(loading):.2f} s, rank {median(ranking):.2f} s"
    )
    return median(loading) + median(ranking)


def main(count=6, number=10_000):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ranked = records(number, folder)
        overhead = cells(count, folder)
    return int(overhead > 3 or ranked > 5)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
