"""Seconds and bytes of all pages of 10,000 synthetic records.

    python -m tests.benchmarks.pages [N]

The aim is under 60 s on two cores and an HTML page under 5 MB; 100 records under 10 s, which is
`make report`'s own start.
"""

import sys
import tempfile
import time
from pathlib import Path

from bench.core.store import Store, path_of
from bench.planning.suites import load_suite
from bench.reporting import boards, pages
from bench.reporting.pages import HTML
from tests.samples import study


def main(wanted=10_000):
    found = []
    grid = load_suite("glue").grids[0]
    for i in range(wanted // 100 + 1):
        model = grid.models[0] if i < len(grid.tasks) else f"model-{i // len(grid.tasks)}"
        found += study(grid.tasks[i % len(grid.tasks)], model)
        if len(found) >= wanted:
            break
    del found[wanted:]
    with tempfile.TemporaryDirectory() as folder:
        results, reports = Path(folder, "results"), Path(folder, "reports")
        for made in found:
            path = results / path_of(made.cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made.to_json())
        seconds = {}
        records, problems = timed(seconds, "load", Store(results).records)
        assert len(records) == wanted
        assert not problems
        timed(seconds, "rank", lambda: boards.boards(records))
        timed(seconds, "pages, with ranking", lambda: write(records, reports, results))
        for what, (wall, cpu) in seconds.items():
            print(f"{what:20} {wall:6.1f} s, {cpu:6.1f} s of CPU")
        files = [path for path in reports.rglob("*") if path.is_file() and path.name != HTML]
        print(f"{HTML:20} {(reports / HTML).stat().st_size / 1e6:6.2f} MB")
        print(f"{'all other files':20} {sum(path.stat().st_size for path in files) / 1e6:6.2f} MB")


def write(records, reports, results):
    return pages.write_pages(records, [], reports, results)


def timed(seconds, what, act):
    wall, cpu = time.perf_counter(), time.process_time()
    done = act()
    seconds[what] = time.perf_counter() - wall, time.process_time() - cpu
    return done


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
