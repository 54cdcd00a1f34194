"""Writes files and folders completely or not at all."""

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
    """Returns `SPARSEBENCH_CACHE`, else the folder `sparsebench` in the user's cache folder."""
    if named := os.environ.get("SPARSEBENCH_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparsebench"


def check_free(out: Path) -> None:
    """Checks that `out` does not exist or is an empty folder.

    Raises:
        BenchError: `out` exists and is not an empty folder, or cannot be read (kind `disk`).
    """
    try:
        if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise BenchError(f"{out} already exists and is not empty; name a new folder")
    except OSError as error:
        raise disk_error(out, error) from error


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out` and renames it to `out` at the end.

    After a failure nothing is left, not even parent folders that were made for it.

    Raises:
        BenchError: kind `disk`, where writing failed.
    """
    new_parents = [parent for parent in out.parents if not parent.exists()]  # deepest first
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as scratch:
            folder = Path(scratch, "model")
            folder.mkdir()
            yield folder
            os.rename(folder, out)
    except BaseException as error:
        for parent in new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise BenchError(f"cannot write {out}: {one_line(error)}", "disk") from error
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces `path` by a file with `content`, or leaves it unchanged.

    The file is on the disk when the function returns (fsync of the file and its folder).

    Raises:
        OSError: the file system's own error; no temporary file stays behind.
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
    """Makes the error for a failed write, of kind `disk`."""
    reason = errno.errorcode.get(error.errno or 0, "")
    return BenchError(f"cannot write {path}: {error.strerror or error} {reason}".rstrip(), "disk")
