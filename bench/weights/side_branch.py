"""A low-rank side branch of a linear module, for methods whose deployed form is sparse + low-rank.

    y = module(x) + (x·downᵀ)·upᵀ

Adding up·down to the weight would fill its zeros, so the branch is exported beside it: its two
matrices are saved under the module's name, and `bench.sources.loading.load_model` puts them back.
They count as parameters and multiply-adds; they are no targets, so sparsity is that of the weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

_DOWN, _UP = ".branch.down", ".branch.up"


class Branch(nn.Module):
    """x → (x·downᵀ)·upᵀ, with down: (rank, in) and up: (out, rank)."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is added to the module's output, (..., out)."""
        return F.linear(F.linear(x, self.down), self.up)


def add(module: nn.Module, down: Tensor, up: Tensor) -> Branch:
    """Puts a branch beside `module`, an nn.Linear or a Conv1D, and returns it."""
    module.branch = Branch(down, up)
    # A function of the file, not a closure: copies and pickles of the model keep working.
    module.register_forward_hook(_plus_branch)
    return module.branch


def restore(model: nn.Module, folder: Path) -> None:
    """Adds the branches that were saved with the model; there are none for most methods."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            names = [name for name in stored.keys() if name.endswith((_DOWN, _UP))]  # noqa: SIM118
            found |= {name: stored.get_tensor(name) for name in names}
    for owner, (down, up) in owners(found).items():
        add(model.get_submodule(owner), found[down], found[up])


def owners(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the modules with a branch among saved tensors, and the names of its matrices."""
    stems = [name.removesuffix(_DOWN) for name in names if name.endswith(_DOWN)]
    return {stem: (stem + _DOWN, stem + _UP) for stem in stems}


def _plus_branch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    added: Tensor = module.branch(inputs[0])  # type: ignore[operator]
    return output + added
