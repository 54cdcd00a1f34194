"""`sparsebench list`: methods with their parameters, tasks, models, suites."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bench.cli.flags import add_command
from bench.cli.output import say

if TYPE_CHECKING:
    from bench.api import Method


def add_commands(commands: Any) -> None:
    """Adds `list`."""
    command = add_command(
        commands,
        "list",
        list_names,
        "List methods, tasks, models or suites.",
        ("list methods", "list methods pst", "list models"),
    )
    command.add_argument("what", choices=("methods", "tasks", "models", "suites"))
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="with methods: show the parameters of this one"
    )
    command.add_argument(
        "--markdown", action="store_true", help="with methods: the table of methods/README.md"
    )


def list_names(options: argparse.Namespace) -> int:
    """Lists what is registered, or one method's parameters."""
    from bench.core.errors import BenchError
    from bench.planning import registry

    if (options.name or options.markdown) and options.what != "methods":
        raise BenchError("NAME and --markdown go with `list methods`")
    if options.name:
        say(describe(registry.method(options.name)))
    elif options.markdown:
        say(methods_table())
    else:
        rows = _rows(options.what)
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            say(f"{name:{width}}  {text}")
    return 0


def _rows(what: str) -> list[tuple[str, str]]:
    from bench.planning import registry
    from bench.planning.suites import load_suite, suite_names
    from bench.sources.catalog import PLACES

    if what == "suites":
        return [(name, load_suite(name).description) for name in suite_names()]
    if what == "models":
        return [(name, f"{p.repo} @ {p.revision[:8]}".rstrip(" @")) for name, p in PLACES.items()]
    if what == "methods":
        methods = map(registry.method, registry.names("method"))
        return [(m.name, f"{m.summary} [{', '.join(m.patterns)}]") for m in methods]
    tasks = map(registry.task, registry.names("task"))
    return [(t.name, f"{(t.__doc__ or '').strip().splitlines()[0]} [{t.metric}]") for t in tasks]


def describe(method: type[Method]) -> str:
    """Describes a method: summary, source, patterns, parameters with defaults and meanings."""
    from bench.core.parameters import allowed, fields_of
    from bench.core.tables import plain

    lines = [f"{method.name}: {method.summary}", f"source: {method.source()}"]
    lines.append(f"patterns: {', '.join(method.patterns)}")
    fields = fields_of(method.Params)
    if not fields:
        return "\n".join([*lines, "no parameters"])
    rows = [
        [name, str(field.default), allowed(field), field.description or ""]
        for name, field in fields.items()
    ]
    return "\n".join([*lines, "", plain(("parameter", "default", "allowed", "meaning"), rows)])


def methods_table() -> str:
    """Returns the built-in methods as the Markdown table of methods/README.md."""
    from bench.core.tables import markdown
    from bench.planning import registry

    rows = []
    for name in registry.builtin("method"):
        method = registry.method(name)
        patterns = ", ".join(f"`{p}`" for p in method.patterns)
        link = f"[`{name}`](#{name})"
        rows.append([link, method.summary, patterns, method.source()])
    return markdown(("method", "what it does", "patterns", "source"), rows)
