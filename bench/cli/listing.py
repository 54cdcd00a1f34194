"""`sparsebench list`."""

from __future__ import annotations

import argparse
from typing import Any

from bench.cli.output import say
from bench.planning import registry
from bench.planning.suites import load_suite, suite_names


def what_there_is(options: argparse.Namespace) -> int:
    """What there is of one kind."""
    rows: list[tuple[str, str]]
    if options.what == "suites":
        rows = [(name, load_suite(name).description) for name in suite_names()]
    elif options.what == "models":
        from bench.sources.catalog import PLACES

        rows = [
            (n, p.repo + (f" @ {p.revision[:8]}" if p.revision else "")) for n, p in PLACES.items()
        ]
    elif options.what == "methods":
        found = [registry.method(name) for name in registry.names("method")]
        rows = [(m.name, f"{_first_line(m)} [{', '.join(m.patterns)}]") for m in found]
    else:
        tasks = [registry.task(name) for name in registry.names("task")]
        rows = [(t.name, f"{_first_line(t)} [{t.metric}]") for t in tasks]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:{width}}  {text}")
    return 0


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]
