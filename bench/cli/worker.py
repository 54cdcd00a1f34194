"""`sparsebench worker`."""

from __future__ import annotations

from bench.engine.dask_worker import work

__all__ = ["work"]
