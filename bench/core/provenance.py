"""Where a number came from: code, machine, time, and hashes of data and weights."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.cell import canonical
from bench.core.overrides import Scalar
from bench.core.record_parts import Code

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy")
SOURCES = ("bench", "methods", "tasks", "pyproject.toml", "constraints.txt")


def commit() -> str:
    """Names the commit of the sources: `abc123`, `abc123, changed` or `unknown commit`."""
    head = _git(ROOT, "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown commit"
    return f"{head}, changed" if _git(ROOT, "status", "--porcelain", "--", *SOURCES) else head


def code(method: type) -> Code:
    """Returns the commit, whether sources differ from it, and the hash of the method's file."""
    source = Path(inspect.getfile(method)).read_bytes()
    return Code(
        git=_git(ROOT, "rev-parse", "HEAD") or "unknown",
        dirty=bool(_git(ROOT, "status", "--porcelain", "--", *SOURCES)),
        method_sha256=hashlib.sha256(source).hexdigest(),
    )


def sources_sha256() -> str:
    """Computes the sha256 over all Python files of bench, methods and tasks."""
    digest = hashlib.sha256()
    for package in ("bench", "methods", "tasks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def env() -> dict[str, Scalar]:
    """Returns versions and hardware, and nothing that names the machine or its user."""
    import torch

    facts: dict[str, Scalar] = {"python": platform.python_version()}
    facts |= {package: version(package) for package in PACKAGES}
    facts["platform"] = f"{platform.system()}-{platform.machine()}"
    # Different processors may have one name: their vector units decide speed and bf16.
    facts["cpu"] = f"{_cpu()} ({torch.backends.cpu.get_cpu_capability()})"
    facts["cores"] = os.cpu_count() or 0
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def hardware() -> str:
    """Names the hardware that times are measured on: the GPU, or the CPU and its threads."""
    facts = env()
    return str(facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads")


def now() -> str:
    """Returns the present time in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rows_sha256(rows: Iterable[Mapping[str, object]]) -> str:
    """Computes the sha256 over rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row) + b"\n")
    return digest.hexdigest()


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Computes the sha256 over names, shapes, dtypes and bytes of a state dict, sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def uncommitted(folder: Path) -> list[str] | None:
    """Returns the paths that git's working tree around `folder` has not committed.

    None where there is no working tree.
    """
    found = _git(folder, "status", "--porcelain")
    return None if found is None else [line[3:] for line in found.splitlines()]


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git prints; None where it fails or is missing.

    Git takes no lock that it can do without: a cell may be killed at any time, and a lock that is
    left behind stops every later commit.
    """
    try:
        run = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.rstrip() if run.returncode == 0 else None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
