"""Checkpoints of a training that may be killed at any moment, in a folder of the cell's own.

A checkpoint is written under another name and renamed when it is complete, so there is no torn one.
It says what its numbers depend on (code, packages, processor, data); any other makes a fresh start.
A failing disk costs a checkpoint, never the cell.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.formats import safetensors_file
from bench.formats.safetensors_file import Entry
from bench.training import state
from bench.training.state import Saved, Unfit

INTERVAL_S = 60.0
"""Seconds between two checkpoints, at least; `SPARSEBENCH_CHECKPOINT_S` says otherwise."""

SHARE = 0.02
"""Of the time, what writing checkpoints may take at most."""

_PREFIX, _FILE = "checkpoint-", "state.safetensors"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one cell; the last one is kept.

    Args:
        folder: theirs alone.
        identity: what the numbers depend on; a checkpoint with another one is none.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.interval = float(os.environ.get("SPARSEBENCH_CHECKPOINT_S", INTERVAL_S))
        self.next = time.monotonic() + self.interval

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() >= self.next

    def save(
        self, step: int, parts: Callable[[], dict[str, Any]], also: Callable[[Path], Any]
    ) -> None:
        """Writes one and removes the one before it; where that fails, says so and goes on.

        Args:
            step: updates done.
            parts: gives the state of training (`bench.training.state`).
            also: adds files to the folder that it is given.
        """
        start = time.monotonic()
        scratch = None
        try:
            text, tensors = state.flatten(parts())
            entries = {
                name: Entry(safetensors_file.dtype_name(x.dtype), tuple(x.shape))
                for name, x in tensors.items()
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
            metadata = {"identity": self.identity, "state": text}
            safetensors_file.write(scratch / _FILE, entries, metadata, tensors.items())
            also(scratch)
            place = self.folder / f"{_PREFIX}{step}"
            shutil.rmtree(place, ignore_errors=True)  # of another identity
            os.rename(scratch, place)
            for other in self._all():
                if other != place:
                    shutil.rmtree(other, ignore_errors=True)
        except BenchError as error:
            log.warning("this cell cannot be resumed: %s", error)
            self.next = float("inf")
            return
        except OSError as error:
            log.warning("no checkpoint: %s: %s", self.folder, error.strerror or error)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)  # gone already where all went well
        now = time.monotonic()
        if self.interval:
            self.next = now + max(self.interval, (now - start) / SHARE)

    def latest(self) -> Path | None:
        """Returns the last complete checkpoint of this very training."""
        for place in reversed(self._all()):
            with contextlib.suppress(BenchError):
                header = safetensors_file.read_header(place / _FILE)
                if header.metadata.get("identity") == self.identity:
                    return place
        return None

    def restore(self, place: Path, fill: Callable[[Saved], None]) -> None:
        """Has the objects of training filled from a checkpoint.

        Args:
            place: the checkpoint's folder.
            fill: takes its parts.

        Raises:
            Unfit: it does not belong to these objects, or has gone.
        """
        try:
            file = safetensors_file.read_header(place / _FILE)
            fill(Saved(json.loads(file.metadata["state"]), file.read))
        except BenchError as error:
            raise Unfit(str(error)) from None
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Unfit(f"{type(error).__name__}: {error}") from None

    def clear(self) -> None:
        """Removes them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        found = [p for p in self.folder.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()]
        return sorted(found, key=lambda p: int(p.name[len(_PREFIX) :]))
