"""Seeds are hashes of named parts: adding a consumer moves no other one's stream."""

from __future__ import annotations

import hashlib
import random
from typing import Any


def derive(*parts: object) -> int:
    """A seed in [0, 2³¹) that depends on the parts' text alone."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators."""
    from transformers import set_seed

    set_seed(seed)


def states() -> dict[str, Any]:
    """Where the global generators stand: plain data and tensors."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_states(found: dict[str, Any]) -> None:
    """Puts the global generators where `states` has found them."""
    import numpy as np
    import torch

    kind, keys, *rest = found["numpy"]
    random.setstate(found["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"])
    if "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"])
