"""What the author of a method or a task needs, and no other names than these.

A **cell** (`bench/core/cell.py`) is one point of the benchmark. To run it, the engine loads the
model, lets the **method** (`bench/api/method.py`) make it sparse, asks the **task**
(`bench/api/task.py`) for a score and leaves a **record** (`bench/core/record.py`). Nothing here
imports torch at run time, so the command line stays fast.
"""

from pydantic import Field

from bench.api.method import Context, Expected, Method, Published
from bench.api.task import Scores, Source, Split, Task
from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError, Outcome
from bench.core.overrides import Setting
from bench.core.parameters import grid, parameters
from bench.core.pattern import Pattern

__all__ = [
    "BenchError",
    "Budget",
    "Cell",
    "Context",
    "Expected",
    "Field",
    "Method",
    "Outcome",
    "Pattern",
    "Published",
    "Scores",
    "Setting",
    "Source",
    "Split",
    "Task",
    "grid",
    "parameters",
]
