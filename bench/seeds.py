"""Seeds are hashes of named parts: adding a consumer moves no other one's stream."""

from __future__ import annotations

import hashlib


def derive(*parts: object) -> int:
    """A seed in [0, 2³¹) that depends on the parts' text alone."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators."""
    from transformers import set_seed

    set_seed(seed)
