"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from bench.core.errors import BenchError, one_line


def cache_dir() -> Path:
    """`SPARSEBENCH_CACHE`, else `sparsebench` in the user's cache folder."""
    if named := os.environ.get("SPARSEBENCH_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparsebench"


def check_free(out: Path) -> None:
    """Refuses a place that is taken, an empty folder excepted."""
    try:
        if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise BenchError(f"{out} is there and not empty; name a new folder")
    except OSError as error:
        raise disk_error(out, error) from error


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end; after a failure nothing is left."""
    new = [parent for parent in out.parents if not parent.exists()]  # deepest first
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as scratch:
            folder = Path(scratch, "model")
            folder.mkdir()
            yield folder
            os.rename(folder, out)
    except BaseException as error:
        for parent in new:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise BenchError(f"cannot write {out}: {one_line(error)}", "disk") from error
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces `path` by a file with `content`, durably, or leaves it as it was.

    Raises:
        OSError: as the file system gives it; no temporary file stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def disk_error(path: Path, error: OSError) -> BenchError:
    """One line for a write that failed."""
    reason = errno.errorcode.get(error.errno or 0, "")
    return BenchError(f"cannot write {path}: {error.strerror or error} {reason}".rstrip(), "disk")
