"""Whether two trees of records say the same: scores, sparsity, parameters, MACs and bytes.

    python -m tests.benchmarks.compare_records BEFORE AFTER

For changes that must not move a number: run a suite before and after, each into a folder of its
own. Times differ between runs and are not compared. Exit code 1 if anything differs.
"""

import sys
from pathlib import Path

from bench.core.store import Store

PARTS = ("cell", "versions", "budget", "hyper", "scores", "sparsity", "params", "macs", "bytes")


def main(before: str, after: str) -> int:
    """Prints one line for each difference, then the totals."""
    old, new = (
        {record.key: record for record in Store(Path(folder)).records()[0]}
        for folder in (before, after)
    )
    lines = [f"only in {before}: {old[key].cell}" for key in old.keys() - new.keys()]
    lines += [f"only in {after}: {new[key].cell}" for key in new.keys() - old.keys()]
    shared = sorted(old.keys() & new.keys(), key=lambda key: str(old[key].cell))
    for key in shared:
        for part in PARTS:
            a, b = getattr(old[key], part), getattr(new[key], part)
            if a != b:
                lines.append(f"{old[key].cell}: {part}: {a} is now {b}")
    print("\n".join([*lines, f"{len(shared)} cells in both, {len(lines)} differences"]))
    return int(bool(lines) or not shared)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
