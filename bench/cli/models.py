"""What the commands of `bench.cli.main` do with single models, which need no suite and no records.

Every one takes the parsed options and returns the exit code. Imports that load torch stand in the
functions that need them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from bench.cli.output import say
from bench.core.errors import BenchError
from bench.core.overrides import parse_settings


def prune_model(options: argparse.Namespace) -> int:
    """Prunes one model into a folder."""
    from bench.export.prune import prune

    found = prune(
        options.model,
        options.method,
        options.out.expanduser(),
        pattern=options.pattern,
        sparsity=options.sparsity,
        overrides=parse_settings(options.set),
        calibration=options.calibration,
        calib=options.calib,
        length=options.length,
        seed=options.seed,
    )
    say(
        f"{options.out}: sparsity {found.overall:.4f} overall, "
        f"{found.min_layer:.4f} to {found.max_layer:.4f} a matrix"
    )
    return 0


def export_model(options: argparse.Namespace) -> int:
    """Packs one model into a folder."""
    from bench.export.export import export

    done = export(
        options.source,
        options.format,
        options.out.expanduser(),
        dtype=options.dtype,
        group=options.group,
        asymmetric=options.asymmetric,
        embeddings=options.embeddings,
        sliced=options.slice,
    )
    for note in done.notes:
        say(f"sparsebench: {note}", sys.stderr)
    layouts = ", ".join(f"{n} {layout}" for layout, n in sorted(done.layouts.items()))
    say(
        f"{options.out}: {options.format} ({layouts}), {done.size / 1e6:.3f} MB, "
        f"computed {done.computed / 1e6:.3f} MB\n"
        f"{done.dense / done.size:.2f}x smaller than dense FP32 ({done.dense / 1e6:.3f} MB); "
        f"the packed matrices alone {done.linear / done.packed:.2f}x\n"
        f"embeddings: {done.embeddings / 1e6:.3f} MB of {done.size / 1e6:.3f} MB, "
        f"{done.dense_embeddings / 1e6:.3f} MB in FP32"
    )
    return 0


def load_model(options: argparse.Namespace) -> int:
    """Checks an exported folder, and writes it as transformers has it."""
    from bench.costs import parameters
    from bench.export.export import load, unpack_folder

    folder = options.folder.expanduser()
    if options.out:
        unpack_folder(folder, options.out.expanduser())
        say(f"{options.out}: an ordinary transformers folder")
        return 0
    model = load(folder)
    found = parameters.count_sparsity(model, "dense")
    say(
        f"{folder}: {type(model).__name__}, {str(model.dtype).removeprefix('torch.')}, "
        f"sparsity {found.overall:.4f}"
    )
    return 0


def pretrain_model(options: argparse.Namespace) -> int:
    """Trains gpt2-mini from scratch."""
    from tqdm import tqdm

    from bench.costs import measure
    from bench.pipeline import pretrain

    measure.reuse_freed_memory()
    try:
        recipe = pretrain.Recipe(**parse_settings(options.set))
    except TypeError:
        known = ", ".join(f.name for f in dataclasses.fields(pretrain.Recipe))
        raise BenchError(f"--set: the recipe has {known}") from None
    with tqdm(total=recipe.steps, unit="step", disable=not sys.stderr.isatty()) as bar:

        def progress(step: int, _: int) -> None:
            bar.update(step - bar.n)

        place = pretrain.pretrain(options.text, recipe, progress)
    say(f"{pretrain.SLUG} is in {place}; use it as --model {pretrain.SLUG}")
    return 0


def speed_table(options: argparse.Namespace) -> int:
    """Prints step times relative to dense."""
    from bench.pipeline import training_step

    methods = options.method or training_step.default_methods()
    say(
        training_step.table(
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
    from bench.costs import by_method
    from bench.weights import patterns, precision

    # A GPU that is not here is taken for one of compute capability 8.0.
    kernel = patterns.has_kernel(precision.device_of()) if options.device is None else False
    say(
        by_method.report(
            options.model,
            options.method or (),
            pattern=options.pattern,
            sparsity=options.sparsity,
            overrides=parse_settings(options.set),
            length=options.length,
            batch=options.batch,
            kernel=kernel or options.device == "cuda",
        )
    )
    return 0
