"""Cases 5, 16 and 21: only weights change, whatever the folder holds."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.api import BenchError
from bench.cli import main
from bench.export import export, folders
from bench.export.prune import prune_folder
from bench.sources import loading
from bench.sources.tiny_models import tiny_tokenizer
from bench.weights import targets
from tests.field import families

OLD_TOKENIZER = {"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 10**30, "ü": "é"}


def as_old(folder, **config):
    """Rewrites a folder's config in the form of transformers 4, with rope_theta and torch_dtype."""
    tree = json.loads((folder / "config.json").read_text())
    rope = tree.pop("rope_parameters", None) or {}
    tree.pop("dtype", None)
    tree |= {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": None}
    tree |= {"torch_dtype": "float32", "transformers_version": "4.57.6", **config}
    (folder / "config.json").write_text(json.dumps(tree, indent=4, sort_keys=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(OLD_TOKENIZER, separators=(", ", ":")))
    (folder / "LICENSE").write_text("of the model")
    (folder / "README.md").write_bytes(b"card\r\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    return folder


def small(folder):
    """The bytes of all files but weights and their index, by path.

    A written folder has a card of its own, and keeps its source's under another name.
    """
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith((".safetensors", ".index.json"))
    }
    if b"\nsparsebench:\n- command: " in found.get("README.md", b""):
        del found["README.md"]
    if "README.source.md" in found:
        found["README.md"] = found.pop("README.source.md")
    return found


def tensors(folder):
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


KINDS = {
    "llama": ("CausalLM", {"num_key_value_heads": 2}),
    "mistral": ("CausalLM", {"num_key_value_heads": 2}),
    "gpt2": ("CausalLM", families.GPT2),
    "gpt_neox": ("CausalLM", {}),
    "bert": ("MaskedLM", {}),
    "deberta-v2": ("MaskedLM", {}),
}


def saved(folder, kind="llama", **config):
    head, more = (KINDS | MIXTURES)[kind]
    return as_old(families.save(folder, kind, head, **more), **config)


@pytest.mark.parametrize("kind", KINDS)
def test_prune_changes_weights_alone(kind, tmp_path):
    folder, out = saved(tmp_path / "m", kind, rope_theta=500000.0), tmp_path / "o"
    prune_folder(str(folder), "magnitude", out, sparsity=0.25)
    assert small(out) == small(folder)
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    model = loading.load_model(folder)
    stems = {t.name for t in targets.prunable(model)}
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {f"{stem}.weight" for stem in stems}
    for name in changed:
        zero = after[name] == 0
        assert int(zero.sum()) == zero.numel() // 4
        assert torch.equal(after[name][~zero], before[name][~zero])


MIXTURES = {
    "mixtral": ("CausalLM", {"num_local_experts": 4, "num_key_value_heads": 2}),
    "qwen2_moe": ("CausalLM", {"num_experts": 4, "moe_intermediate_size": 16}),
    "olmoe": ("CausalLM", {"num_experts": 4}),
}


@pytest.mark.parametrize("kind", [*KINDS, *MIXTURES])
def test_export_and_load_keep_all_files(kind, tmp_path):
    folder = saved(tmp_path / "m", kind)
    export.export(str(folder), "hf", tmp_path / "plain")
    export.export(str(folder), "bitmap", tmp_path / "packed")
    export.unpack_folder(tmp_path / "packed", tmp_path / "back")
    export.unpack_folder(tmp_path / "plain", tmp_path / "again")
    for made in ("plain", "packed", "back", "again"):
        assert small(tmp_path / made) == small(folder)
    before = tensors(folder)
    for made in ("plain", "back", "again"):
        after = tensors(tmp_path / made)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_slice_adds_its_sizes_and_no_more(tmp_path):
    folder = saved(tmp_path / "m")
    model = loading.load_model(folder)
    weight = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    weight[:, :9] = 0
    file = folder / "model.safetensors"
    save_file(
        load_file(file) | {"model.layers.0.mlp.down_proj.weight": weight},
        file,
        metadata={"format": "pt"},
    )
    export.export(str(folder), "hf", tmp_path / "o", sliced=True)
    before, after = small(folder), small(tmp_path / "o")
    old, new = (json.loads(files.pop("config.json")) for files in (before, after))
    assert before == after
    sizes = {"sliced": {"heads": [2, 2, 2], "neurons": [56, 64, 64]}}
    assert new == old | sizes
    assert list(new) == [*old, "sliced"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_trained_head_changes_no_more_than_it_must(kind, tmp_path, monkeypatch):
    from bench.planning import registry
    from bench.sources.catalog import Place

    folder, out = saved(tmp_path / "m", kind, torch_dtype="float16"), tmp_path / "o"
    tiny_tokenizer("bert" if kind == "bert" else "gpt2").save_pretrained(folder)
    state = {name: t.half() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(loading, "folder_of", lambda place: folder)
    model = loading.load_for_task(Place("a/b", "a/b"), registry.task("tiny/reviews"), 1).model
    out.mkdir()
    folders.write_settings(model, None, folder, out)
    folders.write_weights(model, None, out)
    before, after = small(folder), small(out)
    old, new = (json.loads(files.pop("config.json")) for files in (before, after))
    assert before == after
    changed = {key for key in new if key not in old or new[key] != old[key]}
    assert changed - {"pad_token_id"} == {"architectures", "torch_dtype"}
    assert new["architectures"] == [type(model).__name__]
    assert new["torch_dtype"] == "float32"
    assert list(new)[: len(old)] == list(old)
    again = loading.load_model(out)
    first, second = model.state_dict(), again.state_dict()
    assert type(again) is type(model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def shard(folder, parts=3):
    """Divides the weights as older releases did; their names stay."""
    state = load_file(folder / "model.safetensors")
    places = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors"
              for i, name in enumerate(state)}  # fmt: skip
    for file in set(places.values()):
        part = {name: state[name] for name in state if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return places


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_shards_stay_and_stale_weights_go(kind, tmp_path):
    folder = saved(tmp_path / "m", kind)
    places = shard(folder)
    for name in ("pytorch_model.bin", "model.gguf", "tf_model.h5"):
        (folder / name).write_bytes(b"stale")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "consolidated.safetensors")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"stale")
    prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    index = "model.safetensors.index.json"
    assert (tmp_path / "o" / index).read_bytes() == (folder / index).read_bytes()
    files = {p.name for p in (tmp_path / "o").iterdir()}
    assert {name for name in files if name.endswith(".safetensors")} == set(places.values())
    assert not files & {"pytorch_model.bin", "model.gguf", "tf_model.h5", "onnx"}
    assert "pytorch_model.bin.index.json" not in files
    for name, file in places.items():
        assert name in load_file(tmp_path / "o" / file)


@pytest.mark.parametrize(
    "index",
    [{"weight_map": {"a": "../m/model.safetensors"}}, {"weight_map": {"a": 3}}, {}, [],
     {"weight_map": {"a": "absent.safetensors"}}],
)  # fmt: skip
def test_a_damaged_index_is_one_line(index, tmp_path):
    folder = saved(tmp_path / "m")
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BenchError, match=r"index\.json: (damaged index|absent)"):
        prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    assert not (tmp_path / "o").exists()


def old_norms(state):
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {next((n.replace(k, v) for k, v in old.items() if k in n), n): t
            for n, t in state.items()}  # fmt: skip


def no_prefix(state):
    return {name.removeprefix("transformer."): t for name, t in state.items()}


def more_tensors(state):
    extra = {"cls.seq_relationship.weight": torch.ones(2, 32), "old.count": torch.tensor([3])}
    return state | extra


def half(state):
    return {n: t.half() if "norm" in n else t for n, t in state.items()}


NAMES = {
    "gamma": ("bert", "MaskedLM", {}, old_norms),
    "esm": ("esm", "MaskedLM", {}, old_norms),
    "gpt2": ("gpt2", "CausalLM", families.GPT2, no_prefix),
    "unused": ("bert", "MaskedLM", {}, more_tensors),
    "mixed": ("llama", "CausalLM", {}, half),
}


@pytest.mark.parametrize("how", NAMES)
def test_weights_keep_the_names_and_dtypes_of_the_file(how, tmp_path):
    kind, head, more, rename = NAMES[how]
    folder = families.save(tmp_path / "m", kind, head, **more)
    state = rename(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "by": "hand"})
    prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    after = tensors(tmp_path / "o")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in state.items()}
    changed = {n for n in state if not torch.equal(after[n], state[n])}
    assert len(changed) == len(targets.prunable(loading.load_model(folder)))
    assert all(int((after[n] == 0).sum()) == after[n].numel() // 2 for n in changed)
    small_files = small(folder)
    assert small(tmp_path / "o") == small_files


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("reference", ["modeling_own.Own", "owner/name--modeling_own.Own"])
@pytest.mark.parametrize("code", [False, True])
def test_auto_map_goes_without_its_code(where, reference, code, tmp_path, caplog):
    folder = saved(tmp_path / "m")
    tree = json.loads((folder / where).read_text())
    first = dict(list(tree.items())[:1])
    mapped = first | {"auto_map": {"AutoModelForCausalLM": [reference, None]}} | tree
    (folder / where).write_text(json.dumps(mapped))
    if code:
        (folder / "modeling_own.py").write_text("raise SystemExit('foreign code ran')")
    with caplog.at_level(logging.WARNING):
        prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    kept = code and "--" not in reference
    written = json.loads((tmp_path / "o" / where).read_text())
    assert written == (mapped if kept else tree)
    assert list(written) == list(mapped if kept else tree)
    assert (f"{where}: auto_map names code" in caplog.text) != kept
    assert (tmp_path / "o" / "modeling_own.py").is_file() == code


@pytest.mark.parametrize(
    "flags",
    [{"temperature": 0.9, "top_p": 0.6}, {"typical_p": 0.4}, {"top_k": 5, "x_own": [1]}],
)
def test_generation_flags_that_transformers_will_not_save(flags, tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(flags))
    prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    export.export(str(folder), "bitmap", tmp_path / "p")
    export.unpack_folder(tmp_path / "p", tmp_path / "q")
    for made in "opq":
        assert json.loads((tmp_path / made / "generation_config.json").read_text()) == flags


def test_generation_flags_that_transformers_will_not_load(tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"num_return_sequences": 3}')
    with pytest.raises(BenchError, match="cannot be loaded.*num_return_sequences"):
        prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    assert not (tmp_path / "o").exists()


SENTENCEPIECE = ["tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model"]


@pytest.mark.parametrize("file", SENTENCEPIECE)
def test_a_tokenizer_is_read_only_where_it_is_needed(file, tmp_path, monkeypatch, capsys):
    folder = families.save(tmp_path / "m", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / file).write_bytes(b"\x0a\x0b any bytes")
    monkeypatch.setattr(loading, "_installed", lambda package: package != "sentencepiece")
    prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)
    assert (tmp_path / "o" / file).read_bytes() == b"\x0a\x0b any bytes"
    (tmp_path / "ids.json").write_text(json.dumps(families.ids()))
    prune_folder(str(folder), "wanda", tmp_path / "i", sparsity=0.5, length=24,
          calibration=str(tmp_path / "ids.json"))  # fmt: skip
    (tmp_path / "text.txt").write_text("a text " * 400)
    argv = ["prune", folder, "--method", "wanda", "--sparsity", "0.5", "--length", "24",
            "--calibration", tmp_path / "text.txt", "--out", tmp_path / "t"]  # fmt: skip
    capsys.readouterr()
    assert main.main(tuple(map(str, argv))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install 'sparsebench[sentencepiece]'" in err
    assert not (tmp_path / "t").exists()


def test_the_tokenizer_of_a_cell_is_named_in_one_line(tmp_path, monkeypatch):
    from bench.planning import registry
    from bench.sources.catalog import Place

    folder = families.save(tmp_path / "hub" / "a" / "b", "llama")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"x")
    monkeypatch.setattr(loading, "folder_of", lambda place: folder)
    monkeypatch.setattr(loading, "_installed", lambda package: False)
    with pytest.raises(BenchError, match=r"pip install 'sparsebench\[sentencepiece\]'") as error:
        loading.load_for_task(Place("a/b", "a/b"), registry.task("tiny/reviews"), 1)
    assert "\n" not in str(error.value)


BEFORE = [
    ({"length": 129, "calibration": "tiny/reviews"}, "has positions for 128 tokens"),
    ({"calibration": "nowhere.txt"}, "--calibration nowhere.txt"),
    ({"calibration": "tiny/review"}, "unknown task 'tiny/review'"),
    ({"overrides": {"lr": "abc"}}, "lr"),
    ({"method": "gmp"}, "gmp"),
    ({"method": "no-such"}, "unknown method"),
]


@pytest.mark.parametrize(("changes", "line"), BEFORE)
def test_prune_checks_before_it_loads(changes, line, tmp_path, monkeypatch):
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"torn")  # loading it would be the error
    options = {"method": "wanda", "sparsity": 0.5} | changes
    with pytest.raises(BenchError) as error:
        prune_folder(str(folder), out=tmp_path / "o", **options)
    assert line in str(error.value)
    assert not (tmp_path / "o").exists()


def test_prune_checks_the_config_before_it_loads(tmp_path):
    for number, (changes, line) in enumerate(
        [
            ({"architectures": ["Mine"]}, "'Mine' is no model class"),
            ({"quantization_config": {"quant_method": "gptq"}}, "is quantized"),
            ({"model_type": "mine"}, "no usable config.json"),
        ]
    ):
        folder = saved(tmp_path / str(number), **changes)
        (folder / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(BenchError, match=line):
            prune_folder(str(folder), "magnitude", tmp_path / "o", sparsity=0.5)


IN_OLD = """
import json, sys, torch, transformers
assert transformers.__version__.startswith("4.57"), transformers.__version__
source, folder, ids = sys.argv[1], sys.argv[2], torch.tensor([[7, 50, 9, 200, 31, 5]])
config = transformers.AutoConfig.from_pretrained(source)
kind = getattr(transformers, config.architectures[0])
made = {}
for name in (source, folder):
    model, report = kind.from_pretrained(name, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    made[name] = model.eval()
before, after = made[source].state_dict(), made[folder].state_dict()
changed = [n for n in before if not torch.equal(before[n], after[n])]
for name in changed:
    before[name][after[name] == 0] = 0
with torch.no_grad():
    assert torch.equal(made[source](ids)[0], made[folder](ids)[0])
words = transformers.AutoTokenizer.from_pretrained(folder)("w1 w2 w3")["input_ids"]
assert words == transformers.AutoTokenizer.from_pretrained(source)("w1 w2 w3")["input_ids"]
print(json.dumps([len(changed), sum(int((after[n] == 0).sum()) for n in changed)]))
"""


@pytest.fixture(scope="module")
def old_transformers(tmp_path_factory):
    """A path with transformers 4.57, which comes before the installed one."""
    place = tmp_path_factory.mktemp("old")
    wanted = ["transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot install transformers 4.57: {done.stderr.strip()[-200:]}")
    return place


REAL = ["llama", "mistral", "gpt2", "gpt_neox", "bert", "mixtral", "qwen2_moe"]


@pytest.mark.real
@pytest.mark.parametrize("kind", REAL)
def test_transformers_4_loads_what_was_written(kind, old_transformers, tmp_path):
    head, more = (KINDS | MIXTURES)[kind]
    folder = families.save(tmp_path / "m", kind, head, **more)
    as_old(folder, rope_theta=500000.0)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    out = tmp_path / "o"
    prune_folder(str(folder), "magnitude", out, sparsity=0.25)
    export.export(str(folder), "bitmap", tmp_path / "p")
    export.unpack_folder(tmp_path / "p", tmp_path / "q")
    (tmp_path / "old.py").write_text(IN_OLD)
    found = []
    for made in ("o", "q"):
        done = subprocess.run(
            [sys.executable, "-P", "old.py", "m", made],
            capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(old_transformers), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    pruned = targets.prunable(loading.load_model(folder))
    assert found[0][1] >= sum(t.stored.numel() for t in pruned) // 4
    assert found[1] == [0, 0]
