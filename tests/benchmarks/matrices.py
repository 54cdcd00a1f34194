"""Time and error of one-shot methods on one matrix: `python -m tests.benchmarks.matrices [TURNS]`.

All methods take turns in one process. Time is relative to SparseGPT's, without the statistic of the
inputs, which costs all of them a product. The published form of SparseGPT is timed beside them. The
error is ‖XWᵀ − XŴᵀ‖²/‖XWᵀ‖², of matrices with the shapes of SmolLM2-135M and correlated inputs.
"""

import statistics
import sys
import time

import torch

from bench.planning import registry
from methods.shared.masks import pruned_count
from tests.benchmarks.one_shot import correlated
from tests.oracles.sparsegpt import sparsegpt

SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536))
LEVELS = ((0.5, None), (0.7, None), (0.5, (2, 4)))
SEQUENCES = 32
METHODS = (
    ("sparsegpt", {}),
    ("wanda", {}),
    ("ria", {}),
    ("dsnot", {}),
    ("dsnot", {"base": "magnitude"}),
    ("dsnot", {"base": "sparsegpt"}),
    ("sparseswaps", {}),
    ("admm", {}),
    ("alps", {}),
)
PUBLISHED = "sparsegpt, published form"


def prune(name, params, W, X, sparsity, n_m):
    """Returns Ŵ and the seconds that it took after the statistic was complete."""
    kind = registry.method(name)
    method = kind(kind.Params(**params))
    method.n_m, method.sparsity, method.sequences = n_m, sparsity, SEQUENCES
    statistic = method.statistic(W.shape[1], W.device)
    statistic.add(X)
    start = time.perf_counter()
    made = method.pruned(W, statistic, pruned_count(W.numel(), sparsity))
    return made, time.perf_counter() - start


def published(W, X, sparsity, n_m):
    """The published loop, from the Gram matrix on."""
    H = X.t() @ X * (2 / SEQUENCES)
    start = time.perf_counter()
    made = sparsegpt(W, H, n_m=n_m) if n_m else sparsegpt(W, H, sparsity=sparsity)
    return made, time.perf_counter() - start


def measure(shape, sparsity, n_m, turns):
    """Returns by row: median ratio of its time to SparseGPT's in the same turn, and its error."""
    W, X = correlated(*shape)
    whole = (X @ W.t()).square().sum()
    times, errors = {}, {}
    for turn in range(turns + 1):
        for name, params in (*METHODS, (PUBLISHED, {})):
            given = (W.clone(), X, sparsity, n_m)
            made, seconds = published(*given) if name == PUBLISHED else prune(name, params, *given)
            row = " ".join((name, *params.values()))
            errors[row] = float((X @ (W - made).t()).square().sum() / whole)
            if turn:  # the first one warms up
                times.setdefault(row, []).append(seconds)
    own = times["sparsegpt"]
    ratios = {
        row: statistics.median(t / s for t, s in zip(found, own, strict=True))
        for row, found in times.items()
    }
    return ratios, errors, statistics.median(own)


def main(turns=5):
    """Prints a table a level: the ratio of all shapes together, that of each, and the errors."""
    print(f"{torch.get_num_threads()} threads, medians of {turns} turns; time / error a shape")
    for sparsity, n_m in LEVELS:
        found = [measure(shape, sparsity, n_m, turns) for shape in SHAPES]
        level = "2:4" if n_m else f"{sparsity:.0%}"
        shapes = "".join(f"{f'{out} × {width}':>16}" for out, width in SHAPES)
        print(f"\n{level:26}{'all':>7}{shapes}")
        for row in found[0][0]:
            seconds = sum(own for _, _, own in found)
            ratio = sum(ratios[row] * own for ratios, _, own in found) / seconds
            cells = (f"{r[row]:7.2f} {e[row]:8.4f}" for r, e, _ in found)
            print(f"{row:26}{ratio:7.2f}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
