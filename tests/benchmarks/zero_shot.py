"""Time of a zero-shot set relative to lm-eval's command line.

    python -m tests.benchmarks.zero_shot FOLDER [--set arc_easy] [--limit 500] [--batch 16]

Each turn is a process of its own, imports and loading included, on the same saved model, rows and
prompts: lm-eval with float32 and bfloat16 weights, ours in float32 and bfloat16 autocast. In
float32 the accuracies must be equal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.api import Budget
from bench.planning import registry
from bench.sources import loading
from bench.sources.architectures import CLASSES

TURNS = ("lm_eval float32", "ours float32", "lm_eval bfloat16", "ours bfloat16")


def ours(folder, name, limit, dtype):
    """Scores one set and prints the accuracy."""
    task = registry.task(f"zero-shot/{name}")
    kind = CLASSES["causal-lm"]
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tok = loading.AutoTokenizer.from_pretrained(folder)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        budget = Budget(steps=1, batch=1, length=512, items=limit)
        found = task.evaluate(model, tok, torch.device("cpu"), budget=budget)
    print(found.values["accuracy"])


def theirs(folder, name, limit, dtype, batch, scratch):
    """The accuracy that the command line finds."""
    _, (path,) = registry.task(f"zero-shot/{name}").definitions(scratch)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},dtype={dtype}", "--batch_size", str(batch)]
    command += ["--tasks", path, "--output_path", str(scratch / "out")]
    command += ["--limit", str(limit)] if limit else []
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    written = max((scratch / "out").rglob("results*.json"), key=lambda p: p.stat().st_mtime)
    return json.loads(written.read_text())["results"][name]["acc,none"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--set", default="arc_easy")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", default=16)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    common = options.folder, options.set, options.limit
    if options.ours:
        ours(*common, options.ours)
        return
    seconds, accuracy = {turn: [] for turn in TURNS}, {}
    for turn in TURNS * options.turns:
        who, dtype = turn.split()
        start = time.perf_counter()
        if who == "ours":
            command = [sys.executable, "-m", "tests.benchmarks.zero_shot", *sys.argv[1:]]
            run = subprocess.run(
                [*command, "--ours", dtype], check=True, capture_output=True, text=True
            )
            accuracy[turn] = float(run.stdout.split()[-1])
        else:
            with tempfile.TemporaryDirectory() as scratch:
                accuracy[turn] = theirs(*common, dtype, options.batch, Path(scratch))
        seconds[turn].append(time.perf_counter() - start)
    about = f"{options.set}, {options.limit or 'all'} rows, batch {options.batch}"
    print(f"{about}, {torch.get_num_threads()} threads, medians of {options.turns} turns")
    medians = {turn: statistics.median(found) for turn, found in seconds.items()}
    for turn in TURNS:
        ratio = medians[f"lm_eval {turn.split()[1]}"] / medians[turn]
        print(f"{turn:17} {medians[turn]:7.1f} s  {ratio:4.2f} x  accuracy {accuracy[turn]:.6f}")
    assert accuracy["ours float32"] == accuracy["lm_eval float32"]


if __name__ == "__main__":
    main()
