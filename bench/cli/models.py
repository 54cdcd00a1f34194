"""Commands for single models: prune, export, load, pretrain."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.cli.flags import add_command, add_settings, positive
from bench.cli.output import say, warn


def add_commands(commands: Any) -> None:
    """Adds the commands of this module."""
    _add_prune(commands)
    _add_export(commands)
    load = add_command(
        commands,
        "load",
        load_model,
        "Check an exported folder, or turn it back into a transformers folder.",
        ("load packed/", "load packed/ --out plain/"),
    )
    load.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    load.add_argument("--out", type=Path, metavar="HF_DIR", help="a new or empty folder")
    pretrain = add_command(
        commands,
        "pretrain",
        pretrain_model,
        "Train gpt2-mini from scratch and keep it in the cache.",
        ("pretrain", "pretrain --text wikitext texts/ --set steps=200 width=128"),
    )
    pretrain.add_argument(
        "--text",
        nargs="+",
        default=["nlg/e2e", "nlg/webnlg", "wikitext"],
        metavar="SOURCE",
        help="tasks, whose train text is used, and folders of .txt files "
        "(nlg/e2e nlg/webnlg wikitext)",
    )
    add_settings(pretrain, "a field of the recipe (steps=200)")


def _add_prune(commands: Any) -> None:
    command = add_command(
        commands,
        "prune",
        prune_model,
        "Prune one model with a one-shot method and write it as a transformers folder.",
        (
            "prune gpt2 --method magnitude --pattern 2:4 --out pruned/",
            "prune folder/ --method wanda --sparsity 0.5 --calibration text.txt --out pruned/",
        ),
    )
    command.add_argument("model", metavar="MODEL", help="a slug, a hub id or a folder")
    command.add_argument(
        "--method",
        required=True,
        metavar="NAME",
        help="a one-shot method: see `sparsebench list methods`",
    )
    command.add_argument("--pattern", metavar="P", help="default: the method's first")
    command.add_argument(
        "--sparsity",
        metavar="S",
        type=float,
        help="fraction to prune, needed where the pattern is not N:M",
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new or empty folder"
    )
    command.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="a task, a text file, or token ids (.json, .npy); data-driven methods need it",
    )
    command.add_argument(
        "--calib", type=positive, default=128, metavar="N", help="calibration sequences (128)"
    )
    command.add_argument(
        "--length",
        type=positive,
        metavar="L",
        help="tokens in a sequence (512 or the model's limit)",
    )
    command.add_argument("--seed", type=int, default=1, metavar="K", help="of all random draws (1)")
    add_settings(command, "a parameter of the method (percdamp=0.05)")
    _add_push(command)


def _add_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        export_model,
        "Write the model of a record or of a folder in a compact format.",
        (
            "export results/…/seed1.json --format nm-packed+int4 --out packed/",
            "export pruned/ --format bitmap --dtype bf16 --out packed/",
        ),
    )
    command.add_argument("source", metavar="SOURCE", help="a record, or the folder of a model")
    command.add_argument(
        "--format",
        required=True,
        metavar="F",
        help="hf, bitmap, csr, nm-packed, int8, int4, or two of them as bitmap+int4",
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new or empty folder"
    )
    command.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="type of what is not packed (default: the model's)",
    )
    command.add_argument(
        "--embeddings",
        choices=("int8", "int4"),
        help="also quantize embeddings and an untied LM head (default: no)",
    )
    command.add_argument(
        "--group", type=int, choices=(64, 128), help="inputs that share a scale (default: 64)"
    )
    command.add_argument(
        "--asymmetric", action="store_true", default=None, help="give every group a zero point"
    )
    command.add_argument(
        "--slice", action="store_true", help="take out dead blocks, heads and neurons"
    )
    _add_push(command)


def _add_push(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--push", metavar="REPO", help="also upload the folder to OWNER/NAME on the hub"
    )


def _check_push(repo: str | None) -> None:
    """Refuses an upload that cannot be, before there is anything to upload."""
    if repo is not None:
        from bench.export.push import check_push

        check_push(repo)


def _push(folder: Path, repo: str | None) -> None:
    if repo is not None:
        from bench.export.push import push

        say(f"uploaded: {push(folder, repo)}")


def prune_model(options: argparse.Namespace) -> int:
    """Prunes one model into a folder."""
    from bench.core.overrides import parse_settings
    from bench.core.pattern import parse_pattern

    _check_push(options.push)
    from bench.costs.pruned import sparsity_line
    from bench.export.prune import prune_folder

    found = prune_folder(
        options.model,
        options.method,
        options.out.expanduser(),
        pattern=parse_pattern(options.pattern) if options.pattern else None,
        sparsity=options.sparsity,
        overrides=parse_settings(options.set),
        calibration=options.calibration,
        calib=options.calib,
        length=options.length,
        seed=options.seed,
    )
    say(f"{options.out}: {sparsity_line(found)}")
    _push(options.out.expanduser(), options.push)
    return 0


def export_model(options: argparse.Namespace) -> int:
    """Packs one model into a folder."""
    _check_push(options.push)
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
        warn(note)
    layouts = ", ".join(f"{n} {layout}" for layout, n in sorted(done.layouts.items()))
    say(
        f"{options.out}: {options.format} ({layouts}), {done.size / 1e6:.3f} MB, "
        f"computed {done.computed / 1e6:.3f} MB\n"
        f"{done.dense / done.size:.2f}x smaller than dense FP32 ({done.dense / 1e6:.3f} MB); "
        f"the packed matrices alone {done.linear / done.packed:.2f}x\n"
        f"embeddings: {done.embeddings / 1e6:.3f} MB of {done.size / 1e6:.3f} MB, "
        f"{done.dense_embeddings / 1e6:.3f} MB in FP32"
    )
    _push(options.out.expanduser(), options.push)
    return 0


def load_model(options: argparse.Namespace) -> int:
    """Checks an exported folder, or writes it as a transformers folder."""
    from bench.core.pattern import DENSE
    from bench.costs.parameters import count_sparsity
    from bench.export.export import load_folder, unpack_folder

    folder = options.folder.expanduser()
    if options.out:
        unpack_folder(folder, options.out.expanduser())
        say(f"{options.out}: an ordinary transformers folder")
        return 0
    model = load_folder(folder)
    found = count_sparsity(model, DENSE)
    say(
        f"{folder}: {type(model).__name__}, {str(model.dtype).removeprefix('torch.')}, "
        f"sparsity {found.overall:.4f} of all matrices in the blocks"
    )
    return 0


def pretrain_model(options: argparse.Namespace) -> int:
    """Trains gpt2-mini from scratch."""
    from tqdm import tqdm

    from bench.core.overrides import parse_settings
    from bench.core.parameters import make_parameters
    from bench.costs.measure import reuse_freed_memory
    from bench.pipeline import pretrain

    recipe = make_parameters(pretrain.Recipe, parse_settings(options.set), "the recipe")
    reuse_freed_memory()
    with tqdm(total=recipe.steps, unit="step", disable=not sys.stderr.isatty()) as bar:

        def progress(step: int, _: int) -> None:
            bar.update(step - bar.n)

        place = pretrain.pretrain(options.text, recipe, progress)
    say(f"{pretrain.SLUG} is in {place}; use it as --model {pretrain.SLUG}")
    return 0
