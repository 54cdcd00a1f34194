"""Seeds are hashes of named parts, so a new consumer does not change the numbers of others."""

from __future__ import annotations

import hashlib
import random
from typing import Any


def derive(*parts: object) -> int:
    """Returns a seed in [0, 2³¹) that depends only on the parts' text."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators."""
    from transformers import set_seed

    set_seed(seed)


def states() -> dict[str, Any]:
    """Returns the states of the global generators, as plain data and tensors."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state()
    generators = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return generators | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_states(generators: dict[str, Any]) -> None:
    """Restores the states of the global generators that `states` returned."""
    import numpy as np
    import torch

    kind, keys, *rest = generators["numpy"]
    random.setstate(generators["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(generators["torch"])
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"])
