"""`sparsebench prune`: what it writes loads without this project; what fails leaves nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from bench.api import BenchError, Method, parameters
from bench.cli import main
from bench.export import folders
from bench.planning import registry
from bench.sources.tiny_models import tiny_tokenizer
from bench.weights import targets
from methods.magnitude import Magnitude
from methods.shared.masks import pruned_count

transformers.logging.disable_progress_bar()  # in what the tests save themselves

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 261}
CASES = {
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "BertForSequenceClassification": "bert",
    "GPT2LMHeadModel": "gpt2",
    "GPT2ForSequenceClassification": "gpt2",
    "LlamaForCausalLM": "llama",
}
LIMITS = {"bert": "max_position_embeddings", "gpt2": "n_positions"}


def make(folder, kind="GPT2LMHeadModel", dtype=torch.float32, tokenizer=True):
    """A saved tiny model of class `kind` with positions for 64 tokens."""
    family = CASES[kind]
    more = {} if family == "gpt2" else {"intermediate_size": 32}
    more[LIMITS.get(family, "max_position_embeddings")] = 64
    config = AutoConfig.for_model(family, **TINY, **more, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, kind)(config).to(dtype).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer(family).save_pretrained(folder)
    return folder


def run(capsys, *arguments):
    code = main.main(("prune", *map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def good(folder, out, **changes):
    options = {"method": "magnitude", "pattern": "unstructured", "sparsity": 0.5, "out": out}
    options |= changes
    return [folder, *(w for k, v in options.items() if v is not None for w in (f"--{k}", v))]


LOAD = """
import sys, json, torch, transformers
auto = {"Model": "AutoModel", "MaskedLM": "AutoModelForMaskedLM",
        "SequenceClassification": "AutoModelForSequenceClassification"}
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    name = config.architectures[0]
    suffix = next((v for k, v in auto.items() if name.endswith(k) and "LMHead" not in name),
                  "AutoModelForCausalLM")
    model, report = getattr(transformers, suffix).from_pretrained(folder, output_loading_info=True)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("w1 w2 w3", return_tensors="pt")
    with torch.no_grad():
        assert model(input_ids=ids["input_ids"])[0].isfinite().all()
    ours = [m for m in sys.modules if m.split(".")[0] in ("bench", "methods", "tasks")]
    missing = sorted(report["missing_keys"])
    print(json.dumps([type(model).__name__, str(model.dtype), missing, ours]))
"""
WRITTEN = [*((kind, torch.float32) for kind in CASES), ("LlamaForCausalLM", torch.bfloat16)]


def test_what_is_written_loads_without_this_project(capsys, tmp_path):
    made = [tmp_path / str(i) for i in range(len(WRITTEN))]
    for (kind, dtype), out in zip(WRITTEN, made, strict=True):
        code, _, err = run(capsys, *good(make(tmp_path / "model" / out.name, kind, dtype), out))
        assert (code, err) == (0, "")
    script = tmp_path / "load.py"  # in a folder of its own: nothing of ours is importable by chance
    script.write_text(LOAD)
    loaded = subprocess.run(
        [sys.executable, "-P", str(script), *made],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    told = [json.loads(line) for line in loaded.stdout.splitlines() if line.startswith("[")]
    assert told == [[kind, str(dtype), [], []] for kind, dtype in WRITTEN]


@pytest.mark.parametrize(("kind", "dtype"), WRITTEN)
def test_only_the_pruned_weights_change(kind, dtype, capsys, tmp_path):
    folder, out = make(tmp_path / "model", kind, dtype), tmp_path / "a" / "pruned"
    code, text, err = run(capsys, *good(folder, out))
    assert (code, err) == (0, "")
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    assert before.keys() == after.keys()
    model = getattr(transformers, kind).from_pretrained(folder)
    pruned = {f"{t.name}.weight": t for t in targets.prunable(model)}
    prefix = "" if set(pruned) <= set(before) else f"{model.base_model_prefix}."
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    names = {n if n in before else n.removeprefix(prefix) for n in pruned}
    assert changed == names
    assert len(names) == 2 * {"bert": 6, "gpt2": 4, "llama": 7}[CASES[kind]]
    for name in names:
        zero = after[name] == 0
        assert int(zero.sum()) == pruned_count(zero.numel(), 0.5)
        assert torch.equal(after[name][~zero], before[name][~zero])
    numbers = [float(v) for v in re.findall(r"\d\.\d{4}", text)]
    assert numbers == [0.5, 0.5, 0.5]
    assert text.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"model", "a"}
    assert {p.name for p in out.parent.iterdir()} == {"pruned"}
    assert str(tmp_path) not in "".join(p.read_text() for p in out.glob("*.json"))
    assert out.stat().st_mode & 0o777 == folder.stat().st_mode & 0o777


@pytest.mark.parametrize("kind", ["BertModel", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_n_m_runs_along_the_inputs(kind, capsys, tmp_path):
    folder, out = make(tmp_path / "m", kind), tmp_path / "o"
    out.mkdir()  # an empty folder is free
    assert run(capsys, *good(folder, out, pattern="2:4", sparsity=None))[0] == 0
    model = getattr(transformers, kind).from_pretrained(out)
    for target in targets.prunable(model):
        assert bool((target.weight.reshape(-1, 4).count_nonzero(1) == 2).all())


def test_the_printed_counts_are_of_the_file(capsys, tmp_path):
    folder, out = make(tmp_path / "m"), tmp_path / "o"
    code, text, _ = run(capsys, *good(folder, out, sparsity=0.3), "--set", "pool=global")
    assert code == 0
    found = targets.prunable(transformers.GPT2LMHeadModel.from_pretrained(out))
    zeros = [(int((t.weight == 0).sum()), t.weight.numel()) for t in found]
    levels = [z / n for z, n in zeros]
    overall = sum(z for z, _ in zeros) / sum(n for _, n in zeros)
    assert overall == pytest.approx(0.3, abs=1e-3)
    assert min(levels) < 0.29
    expected = [overall, min(levels), max(levels)]
    assert re.findall(r"\d\.\d{4}", text) == [f"{v:.4f}" for v in expected]


def test_the_seed_is_all_that_random_pruning_depends_on(capsys, tmp_path):
    folder = make(tmp_path / "m")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(capsys, *good(folder, tmp_path / name, method="random", seed=seed))
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


BAD = [
    ({"method": "pst"}, "pst trains; prune takes one-shot methods: random, magnitude"),
    ({"method": "dense"}, "dense trains"),
    ({"method": "magnitud"}, "unknown method 'magnitud': did you mean magnitude"),
    ({"pattern": "tower"}, "'tower' is not a pattern"),
    ({"pattern": "4:4"}, "N must be below M"),
    ({"pattern": "2:5", "sparsity": 0.6}, "not a multiple of 5"),
    ({"pattern": "2:4", "sparsity": 0.7}, "pattern 2:4 has sparsity 0.5, not 0.7"),
    ({"sparsity": None}, "pattern unstructured needs a sparsity, such as 0.5 (--sparsity 0.5)"),
    ({"sparsity": 1.5}, "sparsity 1.5"),
    ({"sparsity": "nan"}, "sparsity"),
    ({"set": "pol=row"}, "no parameter 'pol': did you mean pool?"),
    ({"set": "pool=nowhere"}, "pool 'nowhere': Input should be 'layer', 'row' or 'global'"),
    ({"method": "ria", "set": "permute=folded"}, "permute folded: it is for N:M as 2:4"),
    ({"method": "admm", "set": "ramp=30"}, "admm: ramp 30: it is at most iterations, 20"),
    ({"set": "budget.calib=3"}, "--set budget.calib: only parameters of the method"),
    ({"length": 65}, "has positions for 64 tokens"),
    ({"seed": -1}, "seed -1"),
    ({"calibration": "tiny/review"}, "unknown task 'tiny/review': did you mean tiny/reviews"),
    ({"calibration": "nowhere.txt"}, "--calibration nowhere.txt: "),
    ({"calibration": "nowhere.npy"}, "--calibration nowhere.npy: "),
]


@pytest.mark.parametrize(("changes", "line"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(changes, line, capsys, tmp_path):
    folder = make(tmp_path / "m")
    code, out, err = run(capsys, *good(folder, tmp_path / "new" / "o", **changes))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_a_folder_that_is_in_use_is_left_alone(capsys, tmp_path):
    folder, out = make(tmp_path / "m"), tmp_path / "o"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for place, line in (
        (out, "already exists and is not empty"),
        (folder, "already exists and is not empty"),
        (tmp_path / "file", "already exists and is not empty"),
        (tmp_path / "file" / "below", "file"),
    ):
        code, text, err = run(capsys, *good(folder, place))
        assert (code, text, err.count("\n")) == (2, "", 1)
        assert line in err
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert {p.name for p in tmp_path.iterdir()} == {"m", "o", "file"}


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("absent", "unknown model"),
        ("tiny-gpt2", "randomly initialised test model without files"),
        ("nobody/nothing", "cannot reach nobody/nothing on the hub"),
    ],
)
def test_models_that_cannot_be_had(what, line, capsys, tmp_path):
    code, _, err = run(capsys, *good(what, tmp_path / "o"))
    assert (code, err.count("\n")) == (2, 1)
    assert line in err
    assert not list(tmp_path.iterdir())


def spoil(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (lambda f: (f / "config.json").write_text("{"), "no usable config.json"),
        (lambda f: spoil(f, model_type="mine", auto_map={"AutoConfig": "x.Y"}), "no usable config"),
        (lambda f: spoil(f, architectures=["Mine"]), "'Mine' is no model class of transformers"),
        (lambda f: spoil(f, architectures=["Trainer"]), "is no model class of transformers"),
        (lambda f: spoil(f, architectures=None), "'none' is no model class"),
        (lambda f: spoil(f, architectures=["GPT2ForSequenceClassification"]), "no weights for"),
        (lambda f: spoil(f, n_embd=32), "cannot be loaded"),
        (lambda f: spoil(f, quantization_config={"quant_method": "gptq"}), "is quantized"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no safetensors"),
    ],
)
def test_spoilt_models_are_one_line(how, line, capsys, tmp_path):
    folder = make(tmp_path / "m")
    how(folder)
    code, out, err = run(capsys, *good(folder, tmp_path / "o"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert not (tmp_path / "o").exists()


def test_a_failure_on_the_way_leaves_nothing(monkeypatch, tmp_path):
    folder = make(tmp_path / "m")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write", full)
    from bench.export.prune import prune_folder

    out = tmp_path / "deep" / "er" / "o"
    with pytest.raises(BenchError, match="cannot write .*No space left") as error:
        prune_folder(str(folder), "magnitude", out, sparsity=0.5)
    assert error.value.kind == "disk"
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_a_method_that_does_not_keep_its_word_is_refused(monkeypatch, capsys, tmp_path):
    def lie(self, model, ctx):
        pass

    monkeypatch.setattr(Magnitude, "attach", lie)
    code, _, err = run(capsys, *good(make(tmp_path / "m"), tmp_path / "o"))
    assert code == 2
    assert "counted sparsity 0.0" in err
    assert not (tmp_path / "o").exists()


class Probe(Magnitude):
    """Prunes by magnitude after looking at all that it is given."""

    name = "probe"
    seen = {}

    @parameters
    class Params(Magnitude.Params):
        lr: float = 0.0

    def attach(self, model, ctx):
        Probe.seen = {
            "batches": [{k: v.clone() for k, v in b.items()} for b in ctx.calibration()],
            "teacher": {k: v.clone() for k, v in ctx.teacher().state_dict().items()},
            "budget": ctx.budget,
            "dtype": model.dtype,
            "lr": self.params.lr,
        }
        super().attach(model, ctx)


@pytest.fixture
def probe(monkeypatch):
    original = registry.method
    monkeypatch.setattr(registry, "method", lambda n: Probe if n == "probe" else original(n))
    Probe.seen = {}
    return Probe


def probed(capsys, tmp_path, source, kind="GPT2LMHeadModel", tokenizer=True, **changes):
    folder, out = tmp_path / "m", tmp_path / "o"
    if not folder.exists():
        make(folder, kind, tokenizer=tokenizer)
    changes = {"length": 8, "calib": 10} | changes
    code, _, err = run(capsys, *good(folder, out, method="probe", calibration=source, **changes))
    ids = [row.tolist() for b in Probe.seen.get("batches", []) for row in b["input_ids"]]
    return code, err, ids


def test_a_method_that_needs_calibration_says_so(probe, capsys, tmp_path):
    code, err, _ = probed(capsys, tmp_path, None)
    assert (code, err.count("\n")) == (2, 1)
    assert "probe needs calibration" in err
    assert "--calibration" in err


def test_a_text_becomes_windows(probe, capsys, tmp_path):
    (tmp_path / "t.txt").write_text(" ".join(f"w{i}" for i in range(100)))
    code, err, ids = probed(capsys, tmp_path, tmp_path / "t.txt", set="lr=1")
    assert (code, err) == (0, "")
    assert len(ids) == 10
    assert all(row == list(range(row[0], row[0] + 8)) for row in ids)  # w0 has id 5
    assert len({row[0] for row in ids}) > 3
    assert probe.seen["lr"] == 1
    assert probe.seen["budget"].calib == 10
    dense = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m").state_dict()
    assert all(torch.equal(v, dense[k]) for k, v in probe.seen["teacher"].items())


def test_a_method_computes_in_float32_whatever_is_stored(probe, capsys, tmp_path):
    make(tmp_path / "m", dtype=torch.bfloat16)
    assert probed(capsys, tmp_path, "tiny/wikitext")[0] == 0
    assert probe.seen["dtype"] == torch.float32
    written = load_file(tmp_path / "o" / "model.safetensors")
    assert {v.dtype for v in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("task", ["tiny/wikitext", "tiny/reviews"])
def test_a_task_gives_its_train_rows(probe, task, kind, capsys, tmp_path):
    code, err, ids = probed(capsys, tmp_path, task, kind)
    assert (code, err) == (0, "")
    assert len(ids) == 10
    assert max(map(len, ids)) == 8


@pytest.mark.parametrize("suffix", ["json", "npy"])
def test_token_ids_need_no_tokenizer(probe, suffix, capsys, tmp_path):
    stream, rows = list(range(5, 55)), [[7] * 20, [9] * 20, [11] * 20]

    def write(name, ids):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(ids))
        else:
            np.save(path, np.array(ids, dtype=np.uint16))
        return path

    code, err, ids = probed(capsys, tmp_path, write("stream", stream), tokenizer=False)
    assert (code, err) == (0, "")
    assert len(ids) == 10
    assert all(row == list(range(row[0], row[0] + 8)) for row in ids)
    assert not list((tmp_path / "o").glob("*token*"))
    (tmp_path / "o").rename(tmp_path / "done")
    code, err, ids = probed(capsys, tmp_path, write("rows", rows), calib=2)
    assert (code, err) == (0, "")
    assert ids == [[7] * 8, [9] * 8]


def test_ragged_token_ids_are_padded_and_masked(probe, capsys, tmp_path):
    (tmp_path / "r.json").write_text("[[7, 8, 9], [10]]")
    assert probed(capsys, tmp_path, tmp_path / "r.json")[0] == 0
    assert probe.seen["batches"][0]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", "w1 w2", "has 2 tokens, fewer than one window of 8"),
        ("a.txt", b"\xff\xfe\x00", "--calibration"),
        ("a.txt", "", "has 0 tokens"),
        ("a.json", "{", "--calibration"),
        ("a.json", "{}", "wants a list of token ids"),
        ("a.json", "[]", "wants lists of integers"),
        ("a.json", "[[]]", "none of them empty"),
        ("a.json", "[1.5]", "wants a list"),
        ("a.json", '["w1"]', "wants a list"),
        ("a.json", "[[true]]", "wants lists of integers"),
        ("a.json", "[" * 100_000, "--calibration"),
        ("a.json", "[[1, 261]]", "token ids from 1 to 261, the model knows 0 to 260"),
        ("a.json", "[[-1]]", "token ids from -1"),
        ("a.json", "[[99999999999999999999]]", "--calibration"),
        ("a.npy", b"no array", "--calibration"),
        ("a.npy", np.zeros((2, 9)), "wants integers"),
        ("a.npy", np.zeros((2, 9, 2), int), "wants integers"),
        ("a.npy", np.array([{}], dtype=object), "--calibration"),
    ],
)
def test_bad_calibration_files_are_one_line(probe, name, content, line, capsys, tmp_path):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, err, _ = probed(capsys, tmp_path, path)
    assert (code, err.count("\n")) == (2, 1)
    assert line in err
    assert {p.name for p in tmp_path.iterdir()} == {"m", name}


def test_text_without_a_tokenizer_is_refused(probe, capsys, tmp_path):
    (tmp_path / "t.txt").write_text("w1 " * 99)
    for source in (tmp_path / "t.txt", "tiny/wikitext"):
        code, err, _ = probed(capsys, tmp_path, source, tokenizer=False)
        assert (code, err.count("\n")) == (2, 1)
        assert "the model has no tokenizer; give token ids" in err


def test_the_default_length_follows_the_positions(probe, capsys, tmp_path):
    assert probed(capsys, tmp_path, "tiny/wikitext", length=None)[0] == 0
    assert probe.seen["budget"].length == 64
    assert issubclass(probe, Method)
    assert Path(tmp_path / "o" / "config.json").is_file()
