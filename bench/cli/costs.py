"""Commands that measure and count: speed, latency, count."""

from __future__ import annotations

import argparse
from typing import Any

from bench.cli.flags import MANY, add_command, add_settings, positive
from bench.cli.output import say

DTYPES = ("auto", "float32", "bf16")


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
    _add_count(commands)
    speed = add_command(
        commands,
        "speed",
        speed_table,
        "Measure training steps relative to dense fine-tuning.",
        ("speed --method pst gmp:0.9 ast:0.5:kd=0",),
    )
    speed.add_argument(
        "--method",
        **{**MANY, "metavar": "NAME[:SPARSITY[:KEY=VALUE]]"},
        help="methods to measure (default: all that train)",
    )
    speed.add_argument("--model", default="minilm-l6", metavar="NAME", help="a slug (minilm-l6)")
    speed.add_argument(
        "--batch", type=positive, default=32, metavar="B", help="sequences in an update (32)"
    )
    speed.add_argument(
        "--length", type=positive, default=64, metavar="L", help="tokens in a sequence (64)"
    )
    speed.add_argument(
        "--steps", type=positive, default=15, metavar="N", help="timed steps of each method (15)"
    )
    speed.add_argument("--dtype", choices=DTYPES, default="auto", help="type of the products")
    latency = add_command(
        commands,
        "latency",
        latency_table,
        "Measure forward passes of saved models, side by side.",
        ("latency dense/ sliced/ --batch 1 32",),
    )
    latency.add_argument(
        "models", nargs="+", metavar="MODEL", help="folders, slugs or hub ids; the first is 1 ×"
    )
    latency.add_argument(
        "--batch", type=positive, nargs="+", default=[1, 32], metavar="B", help="sequences (1 32)"
    )
    latency.add_argument(
        "--length", type=positive, default=128, metavar="L", help="tokens in a sequence (128)"
    )
    latency.add_argument(
        "--turns", type=positive, default=30, metavar="N", help="timed passes at most (30)"
    )
    latency.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="time for each batch size (60)"
    )
    latency.add_argument("--dtype", choices=DTYPES, default="auto", help="type of the products")


def _add_count(commands: Any) -> None:
    command = add_command(
        commands,
        "count",
        count_model,
        "Count what methods train, store and multiply, from a model's config alone.",
        ("count llama-2-7b", "count bert-base --method pst dsee --sparsity 0.9"),
    )
    command.add_argument(
        "model", metavar="MODEL", help="a slug, a hub id, a folder or a config.json"
    )
    command.add_argument("--method", **MANY, help="methods (default: all)")
    command.add_argument("--pattern", metavar="P", help="default: each method's first")
    command.add_argument(
        "--sparsity", metavar="S", type=float, default=0.5, help="fraction to prune (0.5)"
    )
    command.add_argument(
        "--length", type=positive, default=128, metavar="L", help="tokens in a sequence (128)"
    )
    command.add_argument(
        "--batch", type=positive, default=32, metavar="B", help="sequences in an update (32)"
    )
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device whose savings are counted as realizable (default: this machine's)",
    )
    add_settings(command, "a parameter of the methods (rank=16)")


def speed_table(options: argparse.Namespace) -> int:
    """Prints step times relative to dense."""
    from bench.pipeline import training_step

    methods = options.method or training_step.default_methods()
    say(
        training_step.step_table(
            methods, options.model, options.batch, options.length, options.steps, options.dtype
        )
    )
    return 0


def latency_table(options: argparse.Namespace) -> int:
    """Prints latencies relative to the first model's."""
    from bench.costs import latency

    say(
        latency.table(
            options.models,
            options.batch,
            options.length,
            options.turns,
            options.seconds,
            options.dtype,
        )
    )
    return 0


def count_model(options: argparse.Namespace) -> int:
    """Prints what methods train, store and multiply."""
    from bench.core.overrides import parse_settings
    from bench.core.pattern import parse_pattern
    from bench.costs import by_method
    from bench.weights.patterns import has_kernel
    from bench.weights.precision import default_device

    # A GPU that is not here is taken for one of compute capability 8.0.
    kernel = has_kernel(default_device()) if options.device is None else False
    say(
        by_method.cost_report(
            options.model,
            options.method or (),
            pattern=parse_pattern(options.pattern) if options.pattern else None,
            sparsity=options.sparsity,
            overrides=parse_settings(options.set),
            length=options.length,
            batch=options.batch,
            kernel=kernel or options.device == "cuda",
        )
    )
    return 0
