"""The one place that prints."""

from __future__ import annotations

import sys
from pathlib import Path


def say(text: str) -> None:
    """Prints to standard output."""
    print(text, flush=True)  # noqa: T201


def warn(text: str) -> None:
    """Prints one line to standard error, after the program's name."""
    print(f"sparsebench: {text}", file=sys.stderr, flush=True)  # noqa: T201


def deliver(content: str | bytes, out: Path | None) -> None:
    """Prints a report, or writes it to a file and prints the file's path.

    Raises:
        BenchError: kind `disk`, naming the path.
    """
    if out is None:
        say(str(content))
        return
    from bench.core.files import disk_error, write_atomic

    try:
        write_atomic(out, content + "\n" if isinstance(content, str) else content)
    except OSError as error:
        raise disk_error(out, error) from error
    say(str(out))
