"""Takes a tiny model of every text family of the installed transformers through all commands.

    python -m tests.field.sweep [FAMILY …]

Each step is right, or the command refuses the model in one line, or it is WRONG. A pruned folder is
right if its weights are the source's or zero, and the zeros are as many as the command printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from bench.cli.main import main as sparsebench
from bench.core.errors import BenchError, one_line
from bench.costs.products import sequences
from bench.planning import registry
from bench.sources.architectures import class_of, empty, quiet
from bench.sources.loading import check_model, load_model
from bench.sources.tiny_models import tiny_tokenizer
from tasks.shared.shared_prefix_lm import SharedPrefixLM
from tests.benchmarks.count_families import config_of
from tests.field.families import ids

STEPS = ("magnitude", "wanda", "count", "slice", "zero-shot")
NO_MATRIX = re.compile(
    r"norm\d?\.(weight|gamma|beta)$|(?<!relative_pos_)embed|bias|conv(1d)?(\.conv)?\.weight$|relative_att|a_log$|\.d$|position|scale_table|time_"
)
"""Tensors of two dimensions in a block that multiply no hidden states."""


def families() -> list[str]:
    """The model types with a causal, a masked or a sequence-to-sequence language model."""
    auto = modeling_auto
    names = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return sorted({name for mapping in names for name in mapping})


class Refused(Exception):
    """The command ended with one line."""


def command(*words: object) -> str:
    """Runs a command in this process and returns what it printed.

    Raises:
        Refused: it ended with exit code 2 and one line.
        AssertionError: it ended otherwise.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = sparsebench([str(word) for word in words])
    if code == 2:
        (line,) = (x for x in err.getvalue().splitlines() if x.startswith("sparsebench:"))
        raise Refused(line.removeprefix("sparsebench: "))
    assert code in (0, None), (code, err.getvalue()[-300:])
    return out.getvalue() + err.getvalue()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read without transformers."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def check_pruned(source: Path, pruned: Path, printed: str) -> None:
    """Compares the files: weights are the source's or zero; zeros are as many as was printed."""
    before, after = tensors(source), tensors(pruned)
    assert before.keys() == after.keys()
    zeros = size = 0
    for name, old in before.items():
        new = after[name]
        assert torch.equal(new, torch.where(new == 0, torch.zeros_like(old), old)), name
        if re.search(r"\.\d+\.", name) and old.ndim >= 2 and not NO_MATRIX.search(name.lower()):
            zeros, size = zeros + int((new == 0).sum()), size + new.numel()
        else:
            assert int((new == 0).sum()) == int((old == 0).sum()), name
    overall = float(re.search(r"sparsity ([0-9.]+)", printed)[1])
    assert abs(zeros / size - overall) < 0.01, (zeros / size, overall)


def logits(folder: Path) -> torch.Tensor:
    """The logits of a saved model for a few tokens."""
    model = load_model(folder)
    inputs = sequences(model, 1, 12)
    inputs["input_ids"] = torch.arange(5, 17)[None]
    with torch.no_grad():
        return model(**inputs).logits


def steps(family: str, place: Path):
    """Yields (step, outcome) of a family."""
    config = config_of(family)
    kind = class_of(config)
    size = sum(p.numel() for p in empty(kind, config).parameters())
    assert size < 3e7, f"{size:,} parameters are no tiny model"
    torch.manual_seed(0)
    model = kind._from_config(config).eval()
    source = place / "m"
    model.save_pretrained(source)
    tiny_tokenizer("gpt2").save_pretrained(source)
    (place / "ids.json").write_text(json.dumps(ids()))
    calibrated = ("--calibration", place / "ids.json", "--length", 24)

    def prune(method: str, *more: object) -> str:
        out = place / method
        told = command("prune", source, "--method", method, "--sparsity", 0.5, "--out", out, *more)
        check_pruned(source, out, told)
        return "right"

    def count() -> str:
        command("count", source, "--method", "magnitude")
        return "right"

    def cut() -> str:
        command("export", source, "--format", "hf", "--slice", "--out", place / "sliced")
        assert torch.allclose(logits(source), logits(place / "sliced"), atol=1e-5)
        return "right"

    def score() -> str:
        if not kind.__name__.endswith(("CausalLM", "LMHeadModel")):
            return "-"
        check_model(config, registry.task("tiny/zero-shot"), 24, family)
        asked = [(("", ""), ids()[0], [7, 9, 11]), (("", ""), ids()[0], [8, 10])]

        def scored(lm: type[HFLM]) -> list[tuple[float, bool]]:
            made = AutoModelForCausalLM.from_pretrained(source).eval()
            harness = lm(pretrained=made, tokenizer=tiny_tokenizer("gpt2"), batch_size=2)
            return harness._loglikelihood_tokens(list(asked), disable_tqdm=True)

        try:
            theirs = scored(HFLM)
        except Exception as error:
            return f"- lm-eval cannot either: {one_line(error)}"
        ours = scored(SharedPrefixLM)
        assert all(abs(a[0] - b[0]) < 1e-3 for a, b in zip(ours, theirs, strict=True))
        return "right"

    todo = (lambda: prune("magnitude"), lambda: prune("wanda", *calibrated), count, cut, score)
    for step, run in zip(STEPS, todo, strict=True):
        try:
            yield step, run()
        except Refused as line:
            yield step, f"refused: {line}"
        except BenchError as error:  # what is called directly refuses by its own error
            yield step, f"refused: {error}"
        except Exception as error:
            yield step, f"WRONG {type(error).__name__}: {one_line(error)}"


def outcome(family: str) -> dict[str, str]:
    """What each step did; `build` alone where no tiny model could be made or saved."""
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as scratch:
        try:
            return dict(steps(family, Path(scratch)))
        except Exception as error:
            return {"build": f"failed: {type(error).__name__}: {one_line(error)}"}


def main(chosen: list[str]) -> int:
    """Prints a line a family, then how many there are of each kind."""
    warnings.filterwarnings("ignore")
    quiet()
    counts: dict[str, int] = {}
    for family in chosen or families():
        found = outcome(family)
        for told in found.values():
            key = told.split(":")[0].split()[0]
            counts[key] = counts.get(key, 0) + 1
        row = " | ".join(f"{step} {told[:110]}" for step, told in found.items())
        print(f"{family:20} {row}", flush=True)
    print(counts)
    return int("WRONG" in counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
