"""Low-rank updates of frozen weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bench.weights.precision import without_autocast
from bench.weights.targets import Target
from methods.shared.roles import roles


def updated_rows(target: Target, where: str) -> list[slice]:
    """Returns the row slices of (out, in) that get an A and B of their own, in order."""
    parts = roles(target)
    if where == "all":
        return list(parts.values()) or [slice(0, target.shape[0])]
    return [rows for role, rows in parts.items() if role in where]


class LowRankParams(Protocol):
    """Parameters of a low-rank update: r, and α of its scale α/r."""

    @property
    def rank(self) -> int: ...  # noqa: D102

    @property
    def alpha(self) -> float: ...  # noqa: D102


class LowRankUpdate(nn.Module):
    """Maps a frozen stored weight to W + (α/r)·BA; each updated slice has its own A and B."""

    wide_inputs = ("A",)  # B reads r numbers, whatever the width

    def __init__(
        self, target: Target, rows: list[slice], params: LowRankParams, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.transposed, self.rows = target.transposed, rows
        r, i = params.rank, target.shape[1]
        self.scale = params.alpha / r
        # Kaiming-uniform with a = √5 is U(−1/√in, 1/√in).
        self.A = nn.ParameterList()
        self.B = nn.ParameterList()
        for part in rows:
            uniform = torch.rand(r, i, generator=rng) * 2.0 - 1.0
            self.A.append(nn.Parameter(uniform / i**0.5))
            self.B.append(nn.Parameter(torch.zeros(part.stop - part.start, r)))

    def forward(self, stored: Tensor) -> Tensor:
        """Maps the stored weight to its updated value in the same layout."""
        # The outputs lie along the columns of a Conv1D.
        out = 1 if self.transposed else 0
        pieces, done = [], 0
        with without_autocast(stored):
            for part, A, B in zip(self.rows, self.A, self.B, strict=True):
                pieces.append(stored.narrow(out, done, part.start - done))
                left, right = (A.t(), B.t()) if self.transposed else (B, A)
                old = stored.narrow(out, part.start, part.stop - part.start)
                pieces.append(torch.addmm(old, left, right, alpha=self.scale))
                done = part.stop
            pieces.append(stored.narrow(out, done, stored.shape[out] - done))
            pieces = [piece for piece in pieces if piece.shape[out]]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=out)
