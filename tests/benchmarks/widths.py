"""How the number of kept neurons decides the time of a block: python -m tests.benchmarks.widths

Prints the time of an FFN with gates (1,024 tokens, 576 inputs) relative to that of 1,536 neurons:
medians of the paired ratios of one interleaved run.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = 1536
WIDTHS = (WHOLE, 1232, 1231, 1230, 1229, 1228, 1224, 1216)


def main(turns: int = 40) -> None:
    """Times all widths in turns, on one thread."""
    torch.set_num_threads(1)
    x = torch.randn(1024, 576)
    weights = {n: [torch.randn(n, 576), torch.randn(n, 576), torch.randn(576, n)] for n in WIDTHS}
    taken: dict[int, list[float]] = {n: [] for n in WIDTHS}
    for _ in range(turns):
        for n, (gate, up, down) in weights.items():
            start = time.perf_counter()
            ffn(x, gate, up, down)
            taken[n].append(time.perf_counter() - start)
    for n in WIDTHS:
        ratio = statistics.median(
            t / whole for t, whole in zip(taken[n], taken[WHOLE], strict=True)
        )
        print(f"{n}: {n / WHOLE:.3f} of the neurons, {ratio:.3f} of the time")


def ffn(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Llama's: x (tokens, inputs); gate and up (n, inputs); down (inputs, n)."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
