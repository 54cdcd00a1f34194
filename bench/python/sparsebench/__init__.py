"""sparsebench in Python: prune, train, count, save and load models, and read records.

`bench/README.md` shows each of these in use. A name is imported when it is asked for, so that
`import sparsebench` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.core.errors import BenchError as BenchError
    from bench.costs.count import count as count
    from bench.costs.pruned import Pruned as Pruned
    from bench.export.export import export as export
    from bench.export.in_memory import prune as prune
    from bench.export.load import load as load
    from bench.planning.registry import task as task
    from bench.review.submissions import records as records
    from bench.training.arguments import load_model_and_tokenizer as load_model_and_tokenizer
    from bench.training.arguments import training_arguments as training_arguments
    from bench.training.keep_zeros import KeepZeros as KeepZeros
    from bench.training.sparsity_callback import SparsityCallback as SparsityCallback

_PLACES = {
    "BenchError": "bench.core.errors",
    "KeepZeros": "bench.training.keep_zeros",
    "Pruned": "bench.costs.pruned",
    "SparsityCallback": "bench.training.sparsity_callback",
    "count": "bench.costs.count",
    "export": "bench.export.export",
    "load": "bench.export.load",
    "load_model_and_tokenizer": "bench.training.arguments",
    "prune": "bench.export.in_memory",
    "records": "bench.review.submissions",
    "task": "bench.planning.registry",
    "training_arguments": "bench.training.arguments",
}

__all__ = [
    "BenchError",
    "KeepZeros",
    "Pruned",
    "SparsityCallback",
    "count",
    "export",
    "load",
    "load_model_and_tokenizer",
    "prune",
    "records",
    "task",
    "training_arguments",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
