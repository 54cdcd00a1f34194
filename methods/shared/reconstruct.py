"""Refitting a pruned block to what the dense block puts out (methods/README.md, reconstruction).

min ‖f(X; M⊙W) − f(X; W_dense)‖² over the kept weights of one block f, on its calibration inputs X
(arXiv 2510.14444): AdamW without decay, one update a calibration batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.api import Field, parameters
from bench.weights.targets import Target

WARMUP = 0.1  # of the updates

Run = Callable[[], Tensor]


@parameters
class ReconstructParams:
    """Whether pruned blocks are refitted: of methods that calibrate and prune weights."""

    reconstruct: int = Field(
        default=0,
        ge=0,
        description="passes over the calibration sequences in which the kept weights of a pruned "
        "block are refitted to the outputs of the dense block; 0: none",
    )
    reconstruct_lr: float = Field(
        default=1e-5, gt=0, description="first learning rate of that refit; it falls to 0"
    )


class Block(NamedTuple):
    """A pruned block on the calibration inputs.

    Attributes:
        targets: its matrices.
        runs: for each calibration batch, what computes the hidden states that it puts out.
        wanted: for each batch, what the dense block puts out.
    """

    targets: Sequence[Target]
    runs: Sequence[Run]
    wanted: Sequence[Tensor]

    @torch.no_grad()
    def error(self) -> Tensor:
        """Returns the mean squared error over all batches, float32."""
        pairs = zip(self.runs, self.wanted, strict=True)
        squares = [_squares(run(), wanted) for run, wanted in pairs]
        return torch.stack(squares).sum() / sum(wanted.numel() for wanted in self.wanted)


def refit(block: Block, passes: int, lr: float) -> None:
    """Trains the kept weights of a block; a refit that lowers no error is dropped.

    Zeros stay zero: their gradients are masked, and so are AdamW's moments. The host waits for the
    device twice a block, not in an update.

    Args:
        block: in place; nothing but its targets' weights changes.
        passes: over the batches, in their order.
        lr: the first learning rate.
    """
    before = block.error()
    if not before > 0:
        return  # dense, or not finite
    held = [target.held for target in block.targets]
    start = [weight.detach().clone() for weight in held]
    kept = [weight != 0 for weight in start]
    # A weight that is stored in bf16 would round small updates away.
    exact = [weight.float().clone() for weight in start]
    optimizer = torch.optim.AdamW(exact, lr=lr, weight_decay=0.0)
    trained = [weight.requires_grad for weight in held]
    total, done = passes * len(block.runs), 0
    for weight in held:
        weight.requires_grad_(True)
    try:
        for _ in range(passes):
            for run, wanted in zip(block.runs, block.wanted, strict=True):
                with torch.enable_grad():
                    # Over the first error, so that AdamW's ε means the same in every block.
                    loss = _squares(run(), wanted) / wanted.numel() / before
                    gradients = torch.autograd.grad(loss, held, allow_unused=True)
                for weight, gradient, mask in zip(exact, gradients, kept, strict=True):
                    weight.grad = None if gradient is None else gradient.float() * mask
                optimizer.param_groups[0]["lr"] = lr * _factor(done, total)
                optimizer.step()
                _store(held, exact)
                done += 1
    finally:
        for weight, flag in zip(held, trained, strict=True):
            weight.requires_grad_(flag)
    if not block.error() < before:
        _store(held, start)


def _squares(output: Tensor, wanted: Tensor) -> Tensor:
    return (output.float() - wanted.float()).square().sum()


@torch.no_grad()
def _store(held: list[Tensor], values: list[Tensor]) -> None:
    for weight, value in zip(held, values, strict=True):
        weight.copy_(value)


def _factor(done: int, total: int) -> float:
    """Returns the learning rate's factor: up in a tenth of the updates, then down to 0."""
    warmup = int(WARMUP * total)
    return (done + 1) / (warmup + 1) if done < warmup else (total - done) / (total - warmup)
