"""The one place that prints."""

from __future__ import annotations

import sys
from typing import Any


def say(text: str, stream: Any = None) -> None:
    """The one place that prints."""
    print(text, file=stream or sys.stdout, flush=True)
