"""The empirical Fisher in blocks along the diagonal (methods/README.md, obert).

    F = λI + (1/m)·Σ g gᵀ, of each B consecutive weights; m gradients g

The blocks are formed and inverted some at a time: d·B numbers of a matrix of d weights would take
more memory than the model. A batched Cholesky factor in place of m updates of rank one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_AT_ONCE = 2**22
"""Numbers in the blocks that are worked on at a time: 16 MB in float32."""


@dataclass(frozen=True)
class BlockFisher:
    """F of one matrix.

    Attributes:
        grads: (m, d), the gradients of its weights in the order in which they form blocks.
        damp: λ.
        size: B; the last block is filled up with weights of zero gradient.
    """

    grads: Tensor
    damp: float
    size: int

    def precision(self) -> Tensor:
        """Returns 1/[F⁻¹]_qq for each q, (d,)."""
        if not len(self.grads):
            return self.grads.new_full(self.grads.shape[1:], self.damp)
        parts = [
            torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).flatten().float()
            for _, factor in self._factors()
        ]
        return torch.cat(parts)[: self.grads.shape[1]].reciprocal_()

    def solve(self, v: Tensor) -> Tensor:
        """Returns F⁻¹v, (d,)."""
        if not len(self.grads):
            return v / self.damp
        blocks = self._blocks(v)
        parts = [
            torch.cholesky_solve(blocks[rows, :, None].to(factor.dtype), factor).flatten().float()
            for rows, factor in self._factors()
        ]
        return torch.cat(parts)[: len(v)]

    def _blocks(self, values: Tensor) -> Tensor:
        """Returns (…, d) as (…, blocks, B), with zeros at the end."""
        padded = F.pad(values, (0, -values.shape[-1] % self.size))
        return padded.view(*values.shape[:-1], -1, self.size)

    def _factors(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields which blocks, and the Cholesky factors (n, B, B) of F there."""
        blocks = self._blocks(self.grads)
        step = max(_AT_ONCE // self.size**2, 1)
        for start in range(0, blocks.shape[1], step):
            rows = slice(start, start + step)
            part = blocks[:, rows].transpose(0, 1).float()
            gram = part.mT @ part / len(self.grads)
            # float32 rounds a block by some 1e-7 of its trace, and in the directions without a
            # gradient nothing but λ stands against that.
            trace = gram.diagonal(dim1=1, dim2=2).sum(1).max()
            if float(trace) * 1e-7 > 0.01 * self.damp:
                part = part.double()
                gram = part.mT @ part / len(self.grads)
            gram.diagonal(dim1=1, dim2=2).add_(self.damp)
            yield rows, torch.linalg.cholesky(gram)
