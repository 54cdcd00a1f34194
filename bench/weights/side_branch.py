"""A low-rank side branch of a linear module, for methods whose deployed form is sparse + low-rank.

    y = module(x) + (x·downᵀ)·upᵀ

Adding up·down to the weight would fill its zeros, so the branch is exported beside the weight. Its
two matrices are saved under the module's name, and `bench.sources.loading.load_model` restores
them. They count as parameters and multiply-adds. They are not targets, so sparsity is that of the
weight.
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
    """The map x → (x·downᵀ)·upᵀ with down: (rank, in) and up: (out, rank)."""

    wide_inputs = ("down", "up")  # its rank grows with the width (SLoRB, LoSparse)

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the term (..., out) that is added to the module's output."""
        return F.linear(F.linear(x, self.down), self.up)


def add(module: nn.Module, down: Tensor, up: Tensor) -> Branch:
    """Adds a branch to `module`, an nn.Linear or a Conv1D, and returns the branch.

    Args:
        module: the linear module.
        down: (rank, in).
        up: (out, rank).
    """
    module.branch = Branch(down, up)
    # A function of this module, not a closure, so that the model can be copied and pickled.
    module.register_forward_hook(_plus_branch)
    return module.branch


def restore(model: nn.Module, files: Iterable[Path]) -> None:
    """Adds the branches that are saved in the model's files; most methods have none."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            names = [name for name in stored.keys() if is_branch(name)]  # noqa: SIM118
            tensors |= {name: stored.get_tensor(name) for name in names}
    for owner, (down, up) in owners(tensors).items():
        add(model.get_submodule(owner), tensors[down], tensors[up])


def is_branch(name: str) -> bool:
    """Tells whether a saved tensor is a part of a branch."""
    return name.endswith((_DOWN, _UP))


def owners(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the modules that have a branch among saved tensors: {module: (down, up)}, by name."""
    stems = [name.removesuffix(_DOWN) for name in names if name.endswith(_DOWN)]
    return {stem: (stem + _DOWN, stem + _UP) for stem in stems}


def _plus_branch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    added: Tensor = module.branch(inputs[0])  # type: ignore[operator]
    return output + added
