"""Asks whether the hub can be reached, if the chosen tasks or models lie on the hub alone.

`make bench` runs this before it installs anything, so nothing but the standard library is imported:
`python3 -m bench.planning.reach --suite glue`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.sources import hub
from bench.sources.catalog import PLACES
from bench.sources.pypi_assets import ASSETS
from tasks import ON_HUB

SUITES = Path(__file__).parent.parent / "suites"


def missing(tasks: Sequence[str], models: Sequence[str]) -> list[str]:
    """Returns the repositories that are not on this machine and cannot be fetched from the hub."""
    wanted = dict.fromkeys(ON_HUB[task] for task in tasks if task in ON_HUB)
    wanted |= dict.fromkeys(repo for model in models if (repo := _repo_of(model)))
    lacking = [repo for repo in wanted if not (hub.find(repo) or _in_hub_cache(repo))]
    return lacking if lacking and not _online() else []


def _repo_of(model: str) -> str:
    """Returns the hub's repository of a model; empty where it does not lie on the hub."""
    place = PLACES.get(model)
    if place is None:
        is_id = model.count("/") == 1 and not Path(model).expanduser().is_dir()
        return model if is_id and not model.startswith((".", "/", "~")) else ""
    return "" if place.tiny or place.command or place.repo in ASSETS else place.repo


def _in_hub_cache(repo: str) -> bool:
    """Returns whether an earlier download from the hub may hold the repository."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    flat = repo.replace("/", "--")
    places = (
        f"hub/models--{flat}",
        f"hub/datasets--{flat}",
        f"datasets/{repo.replace('/', '___')}",
    )
    return any((home / place).is_dir() for place in places)


def _online() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy could tell
    return hub.answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def _all(suite: Mapping[str, Any], field: str) -> list[str]:
    """Returns the names of a field in a suite and in all its grids."""
    return [name for part in (suite, *suite.get("grid", ())) for name in part.get(field, ())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags of `sparsebench run`; returns 2 after a line that names what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--task", nargs="+", action="extend")
    parser.add_argument("--model", nargs="+", action="extend")
    parser.add_argument("--smoke", action="store_true")
    options, _ = parser.parse_known_args(arguments)
    if options.smoke:
        return 0  # tiny models and synthetic tasks
    path = Path(options.suite)
    path = path if path.suffix == ".toml" else SUITES / f"{options.suite}.toml"
    try:
        suite = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0  # `run` says what is wrong with the suite
    try:
        tasks, models = options.task or _all(suite, "tasks"), options.model or _all(suite, "models")
        lacking = missing(tasks, models)
        if lacking:
            raise hub.offline(", ".join(lacking))
    except BenchError as error:
        sys.stderr.write(f"sparsebench: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
