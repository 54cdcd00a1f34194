"""Writes files and folders completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.core.errors import BenchError, one_line

if TYPE_CHECKING:
    from safetensors import SafetensorError


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
def write_folder_atomically(
    out: Path, existing: Literal["refuse", "keep", "replace"] = "refuse"
) -> Iterator[Path]:
    """Yields an empty folder that becomes `out` when the block ends; after a failure, none stays.

    The parent of that folder may take temporary files; it goes away with the block.

    Args:
        out: what the folder becomes.
        existing: what happens to an `out` that is there by then. `refuse` fails, unless it is an
            empty folder; `keep` leaves it, because another process has written the same there;
            `replace` puts the new one in its place.

    Raises:
        BenchError: `disk`, for whatever could not be written; `out` is as it was.
    """
    # The caches' folders are shared: a process that fails must not remove them under another one.
    missing = [parent for parent in out.parents if not parent.exists()]
    new_parents = missing if existing == "refuse" else []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=out.parent, prefix=".new-", ignore_cleanup_errors=True
        ) as scratch:
            folder = Path(scratch, "new")
            folder.mkdir()
            yield folder
            if existing == "replace":
                _replace(out, folder, Path(scratch, "old"))
            else:
                os.rename(folder, out)
    except BaseException as error:
        for parent in new_parents:  # deepest first
            with contextlib.suppress(OSError):
                parent.rmdir()
        from safetensors import SafetensorError  # this module runs before packages are installed

        if not isinstance(error, (OSError, SafetensorError)):
            raise
        if existing == "keep" and out.is_dir():
            return
        raise disk_error(out, error) from error


def _replace(out: Path, new: Path, old: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(out, old)
    try:
        os.rename(new, out)
    except OSError as error:
        # Between the two another process may have put its folder there, as new as ours.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
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


def disk_error(path: Path, error: OSError | SafetensorError) -> BenchError:
    """Makes one line of a write that failed."""
    reason = getattr(error, "strerror", None) or one_line(error)
    code = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    return BenchError(f"cannot write {path}: {reason} {code}".rstrip(), "disk")
