"""Time of one-shot methods on a whole decoder, calibrated in float32 and in bf16, side by side.

    python -m tests.benchmarks.calibration [--model smollm2-135m-q4] [--task wikitext] [--calib 32]

All turns are in one process, so that whatever else the machine does hits all alike.
"""

import argparse
import statistics

import torch

from bench.core.cell import Cell
from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from bench.weights import precision
from methods.shared import passes

ARITHMETICS = ("float32", "bf16-autocast")


def seconds(job, dtype):
    """What a method reports of one attach with passes in `dtype`: forward and pruning seconds."""
    passes.for_scoring = lambda head, device: dtype
    device = precision.default_device()
    loaded = loading.load_for_task(job.place, job.task, job.cell.seed)
    loaded.tok.model_max_length = job.budget.length
    method = job.make_method()
    method.attach(loaded.model.to(device), make_context(job, loaded, device))
    return method.report["forward_s"], method.report["prune_s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--task", default="wikitext")
    parser.add_argument("--calib", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; medians of {options.turns} turns; seconds")
    for name in options.methods:
        cell = Cell(
            task=options.task,
            model=options.model,
            method=name,
            pattern="unstructured",
            sparsity=0.5,
            overrides={"budget.calib": options.calib},
        )
        job, found = Job.resolve(cell), {dtype: [] for dtype in ARITHMETICS}
        for _ in range(options.turns):
            for dtype, turns in found.items():
                turns.append(seconds(job, dtype))
        for dtype, turns in found.items():
            forward, prune = (statistics.median(part) for part in zip(*turns, strict=True))
            print(f"{name:12} {dtype:14} forward {forward:7.1f}  prune {prune:6.1f}")


if __name__ == "__main__":
    main()
