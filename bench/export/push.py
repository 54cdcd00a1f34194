"""`--push REPO`: a written folder goes to the hub. What can fail early fails before any work."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from bench.core.errors import BenchError, one_line


def check_push(repo: str) -> None:
    """Checks that a folder could be uploaded: a name, a network, a valid token.

    Raises:
        BenchError: `offline`, or what is wrong, in one line.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise BenchError(f"--push {repo}: write a hub id as OWNER/NAME") from None
    if constants.HF_HUB_OFFLINE:
        raise BenchError("--push needs the hub, and HF_HUB_OFFLINE is set; unset it", "offline")
    login = "log in with `hf auth login` or set HF_TOKEN"
    if not get_token():
        raise BenchError(f"--push {repo}: no token for the hub; {login}", "offline")
    try:
        HfApi().whoami()
    except Exception as error:  # of the network, of the token, of the server
        raise BenchError(f"--push {repo}: {_reason(error)}; {login}", "offline") from None


def push(folder: Path, repo: str) -> str:
    """Uploads a folder as a model, in one commit, and returns the address of the repository.

    A repository that is not there yet is made as a public one; the files of one that is there are
    replaced, and its others stay.

    Raises:
        BenchError: `offline`; the folder stays as it is.
    """
    api = HfApi()
    try:
        made = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload by sparsebench"
        )
    except Exception as error:
        reason = f"{folder} is written, but not uploaded to {repo}: {_reason(error)}"
        raise BenchError(f"{reason}; try `hf upload {repo} {folder}`", "offline") from None
    return str(made)


def _reason(error: Exception) -> str:
    return one_line(error).rstrip(".")
