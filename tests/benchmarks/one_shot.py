"""Time of SparseGPT's solver relative to the published form: `python -m tests.benchmarks.one_shot`.

Both take turns in one process, so that whatever else the machine does hits both alike.
"""

import statistics
import sys
import time

import torch

from methods.shared import obs
from methods.shared.masks import pruned_count
from tests.oracles.sparsegpt import sparsegpt

SHAPES = ((576, 1536), (1536, 576), (4096, 4096))


def correlated(out, width, seed=0):
    """Weights on the scale of a trained layer, and correlated inputs (4·width, width)."""
    g = torch.Generator().manual_seed(seed)
    tokens, rank = 4 * width, width // 4
    X = torch.randn(tokens, rank, generator=g) @ torch.randn(rank, width, generator=g) / rank**0.5
    X += 0.3 * torch.randn(tokens, width, generator=g)
    return 0.02 * torch.randn(out, width, generator=g), X


def problem(out, width, seed=0):
    """Weights, and the second moment of inputs."""
    W, X = correlated(out, width, seed)
    return W, X.t() @ X / len(X)


def ours(W, H, pattern):
    factor = obs.factorise(H, 0.01)
    if pattern == "2:4":
        return obs.sweep(W, factor, obs.n_of_m(2), 4)
    k = pruned_count(W.numel(), 0.5)
    return obs.sweep(W, factor, obs.exactly(k, W.shape[1]), 128)


def published(W, H, pattern):
    return sparsegpt(W, H, n_m=(2, 4)) if pattern == "2:4" else sparsegpt(W, H, sparsity=0.5)


def measure(out, width, pattern, turns):
    """Ours s, published s, ratio of medians, distance given the same mask, masks equal."""
    W, H = problem(out, width)
    times = {ours: [], published: []}
    results = {}
    for turn in range(turns + 1):
        for run in times:
            start = time.perf_counter()
            results[run] = run(W, H, pattern)
            if turn:
                times[run].append(time.perf_counter() - start)
    fast, slow = (statistics.median(times[run]) for run in (ours, published))
    keep = results[published] != 0
    same = ((results[ours] != 0) == keep).float().mean().item()
    again = obs.sweep(W, obs.factorise(H, 0.01), lambda _, a, b: ~keep[:, a:b].t(), 128)
    distance = ((again - results[published]).norm() / results[published].norm()).item()
    return fast, slow, slow / fast, distance, same


def main(turns=3):
    print(f"{torch.get_num_threads()} threads, medians of {turns} interleaved turns after one")
    print("out × in      pattern  ours s  published s  ratio  rel. distance  masks equal")
    for out, width in SHAPES:
        for pattern in ("50 %", "2:4"):
            fast, slow, ratio, distance, same = measure(out, width, pattern, turns)
            print(
                f"{out:4} × {width:<6} {pattern:>7}  {fast:6.3f}  {slow:11.3f}  {ratio:5.2f}"
                f"  {distance:13.1e}  {100 * same:10.4f}%",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
