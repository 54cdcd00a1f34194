"""`sparsebench export` and `load`: what comes back, how small it is, and what is not believed."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig

from bench.api import BenchError
from bench.cli import main
from bench.core.overrides import Quantizer
from bench.export import export, packed_folder
from bench.formats import safetensors_file
from bench.formats.quantize import quantize, rounded
from bench.sources.tiny_models import tiny_tokenizer
from bench.weights import side_branch, slicing, targets
from tests import helpers
from tests.test_slicing import made as sliceable
from tests.test_slicing import zero

transformers.logging.disable_progress_bar()

KINDS = {
    "BertForSequenceClassification": ("bert", {"intermediate_size": 128}),
    "GPT2LMHeadModel": ("gpt2", {"n_positions": 64}),
    "LlamaForCausalLM": ("llama", {"intermediate_size": 128, "num_key_value_heads": 2}),
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 261}
FORMATS = ["hf", "bitmap", "csr", "nm-packed", "int8", "int4", "csr+int4"]


def pruned(folder, kind, pattern="2:4", dtype=torch.float32, tokenizer=True):
    """A saved tiny model whose targets have zeros."""
    family, more = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **more, pad_token_id=0)
    model = getattr(transformers, kind)(config).to(dtype)
    for target in targets.prunable(model):
        weight = target.weight.clone()
        if pattern == "2:4":
            groups = weight.view(-1, 4)
            groups.scatter_(1, groups.abs().argsort(dim=1)[:, :2], 0.0)
        elif pattern == "unstructured":
            weight[weight.abs() < weight.abs().float().quantile(0.8)] = 0.0
        target.write(weight)
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer(family).save_pretrained(folder)
    return model.eval()


def same(one, two):
    """Whether all tensors are the same, names and bits."""
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[n], second[n]) and first[n].dtype == second[n].dtype for n in first
    )


def run(capsys, *arguments):
    code = main.main(tuple(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_models_come_back(kind, form, tmp_path):
    model = pruned(tmp_path / "m", kind)
    report = export.export(str(tmp_path / "m"), form, tmp_path / "o")
    again = export.load_folder(tmp_path / "o")
    assert type(again) is type(model)
    assert not again.training
    assert (tmp_path / "o" / "tokenizer.json").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"m", "o"}
    if "int" not in form:
        assert same(model, again)
        assert torch.equal(helpers.logits(model), helpers.logits(again))
        return
    quantizer = Quantizer(name=form.split("+")[-1])
    pairs = zip(targets.prunable(model), targets.prunable(again), strict=True)
    for before, after in pairs:
        scales = quantize(before.weight, quantizer).scales.float()
        bound = scales.repeat_interleave(64, dim=1)[:, : before.shape[1]] / 2
        assert bool(((before.weight - after.weight).abs() <= bound * (1 + 1e-5)).all())
        assert bool((after.weight[before.weight == 0] == 0).all())
        before.write(after.weight)
    assert same(model, again)  # nothing but the targets has moved
    if form == "int4":
        assert report.layouts == {"nm-packed": len(targets.prunable(model))}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_read_one_tensor_at_a_time(kind, tmp_path, monkeypatch):
    model = pruned(tmp_path / "m", kind, dtype=torch.bfloat16)
    whole = export.load_folder(tmp_path / "m")
    assert same(whole, model)
    monkeypatch.setattr(export, "load_folder", None)
    export.export(str(tmp_path / "m"), "csr", tmp_path / "o")
    assert same(packed_folder.load_packed(tmp_path / "o"), model)


def test_other_names_in_the_file_are_left_to_transformers(tmp_path):
    model = pruned(tmp_path / "m", "GPT2LMHeadModel")
    model.transformer.save_pretrained(tmp_path / "base")  # no prefix, as gpt2 on the hub
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    export.export(str(tmp_path / "base"), "nm-packed", tmp_path / "o")
    assert same(export.load_folder(tmp_path / "o"), model)


def test_settings_for_generation_are_kept(tmp_path):
    pruned(tmp_path / "m", "GPT2LMHeadModel")
    settings = transformers.GenerationConfig(max_new_tokens=7)
    settings.save_pretrained(tmp_path / "m")
    export.export(str(tmp_path / "m"), "csr", tmp_path / "o")
    export.unpack_folder(tmp_path / "o", tmp_path / "back")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back")
    assert again.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_half_precision_comes_back_bit_by_bit(kind, tmp_path):
    model = pruned(tmp_path / "m", kind, "unstructured", torch.bfloat16)
    export.export(str(tmp_path / "m"), "bitmap", tmp_path / "o")
    assert same(model, export.load_folder(tmp_path / "o"))
    assert same(model, export.load_folder(tmp_path / "m"))


def test_the_rest_is_stored_in_the_dtype_asked_for(tmp_path):
    model = pruned(tmp_path / "m", "GPT2LMHeadModel", "unstructured")
    export.export(str(tmp_path / "m"), "bitmap", tmp_path / "o", dtype="fp16")
    stored = load_file(tmp_path / "o" / packed_folder.FILE)  # any safetensors library reads it
    assert stored["transformer.wte.weight"].dtype == torch.float16
    assert stored["transformer.h.0.attn.c_attn.weight.values"].dtype == torch.float32
    assert "lm_head.weight" not in stored
    again = export.load_folder(tmp_path / "o")
    assert again.dtype == torch.float32
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.half().float())
    for before, after in zip(targets.prunable(model), targets.prunable(again), strict=True):
        assert torch.equal(before.weight, after.weight)


def test_the_command_line_there_and_back(capsys, tmp_path):
    model = pruned(tmp_path / "m", "GPT2LMHeadModel")
    there = ("export", tmp_path / "m", "--format", "nm-packed", "--out", tmp_path / "o")
    code, out, err = run(capsys, *there)
    assert (code, err) == (0, "")
    assert "nm-packed (4 nm-packed)" in out
    assert "the packed matrices alone 1.92x" in out  # 32 bits / 16.67
    code, out, _ = run(capsys, "load", tmp_path / "o")
    assert code == 0
    assert "GPT2LMHeadModel, float32, sparsity 0.5000" in out
    assert run(capsys, "load", tmp_path / "o", "--out", tmp_path / "back")[0] == 0
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert same(model, again.eval())
    assert (tmp_path / "back" / "tokenizer.json").is_file()
    text = "".join(p.read_text() for p in (tmp_path / "o").glob("*.json"))
    assert str(tmp_path) not in text
    assert str(tmp_path).encode() not in (tmp_path / "o" / packed_folder.FILE).read_bytes()


def test_a_packed_folder_can_be_packed_otherwise(tmp_path):
    model = pruned(tmp_path / "m", "LlamaForCausalLM")
    export.export(str(tmp_path / "m"), "nm-packed", tmp_path / "a")
    export.export(str(tmp_path / "a"), "csr", tmp_path / "b")
    assert same(model, export.load_folder(tmp_path / "b"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_files_are_as_large_as_computed(form, pattern, tmp_path):
    if (form, pattern) == ("nm-packed", "unstructured"):
        pytest.skip("has no N:M pattern")
    config = AutoConfig.for_model(
        "gpt2", hidden_size=384, num_hidden_layers=1, num_attention_heads=6, vocab_size=500
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    for target in targets.prunable(model):
        weight = target.weight.clone()
        if pattern == "2:4":
            weight.view(-1, 4)[:, :2] = 0.0
        else:
            weight[torch.rand(weight.shape) < 0.8] = 0.0
        target.write(weight)
    model.save_pretrained(tmp_path / "m")
    embeddings = "int4" if "int" in form else None
    report = export.export(str(tmp_path / "m"), form, tmp_path / "o", embeddings=embeddings)
    assert report.size == sum(f.stat().st_size for f in (tmp_path / "o").glob("*.safetensors"))
    assert report.size == pytest.approx(report.computed, rel=0.02)
    assert report.dense == 4 * model.num_parameters()
    factor = report.linear / report.packed
    bits = {
        "2:4": {"hf": 32, "bitmap": 17, "csr": 24, "nm-packed": 16.67, "int8": 4.92, "int4": 2.92},
        "unstructured": {"hf": 32, "bitmap": 7.4, "csr": 9.6, "int8": 2.85, "int4": 2.05},
    }[pattern]
    bits["csr+int4"] = {"2:4": 10.25, "unstructured": 4.25}[pattern]
    assert factor == pytest.approx(32 / bits[form], rel=0.02)


TABLES = {
    "BertForSequenceClassification": {
        "bert.embeddings.word_embeddings": 261,
        "bert.embeddings.position_embeddings": 512,
        "bert.embeddings.token_type_embeddings": 2,
    },
    "GPT2LMHeadModel": {"transformer.wte": 261, "transformer.wpe": 64},
    "LlamaForCausalLM": {"model.embed_tokens": 261, "lm_head": 261},
}


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_rounded_on_request(kind, name, capsys, tmp_path):
    """Every embedding and the untied head of Llama; nothing else."""
    model = pruned(tmp_path / "m", kind, dtype=torch.bfloat16)
    arguments = (tmp_path / "m", "--format", "int4", "--embeddings", name, "--group", 128)
    code, out, err = run(capsys, "export", *arguments, "--out", tmp_path / "o")
    assert (code, err) == (0, "")
    again = export.load_folder(tmp_path / "o")
    head, table = again.get_output_embeddings(), again.get_input_embeddings()
    assert (head is not None and head.weight is table.weight) == (kind == "GPT2LMHeadModel")
    assert [(t.name, t.shape) for t in targets.embedding_tables(model)] == [
        (table, (rows, 64)) for table, rows in TABLES[kind].items()
    ]
    for target in targets.prunable(model):
        target.write(rounded(target.weight, Quantizer(name="int4", group=128)))
    assert not same(model, again)
    for table in TABLES[kind]:
        weight = model.get_submodule(table).weight.detach()
        weight.copy_(rounded(weight, Quantizer(name=name, group=128)))
    assert same(model, again)
    rows = sum(TABLES[kind].values())
    size = rows * 64 * {"int8": 1, "int4": 0.5}[name] + rows * 2  # one scale a row
    dense = 4 * 64 * rows
    assert f"embeddings: {size / 1e6:.3f} MB of " in out
    assert f"{dense / 1e6:.3f} MB in FP32" in out
    # A folder whose embeddings are packed can be packed otherwise.
    export.export(str(tmp_path / "o"), "bitmap", tmp_path / "b")
    assert same(again, export.load_folder(tmp_path / "b"))


def test_embeddings_have_a_price_in_every_format(tmp_path):
    pruned(tmp_path / "m", "GPT2LMHeadModel")
    size = 4 * 64 * (261 + 64)
    for form, dtype, taken in (("hf", None, size), ("int4", None, size), ("csr", "bf16", size / 2)):
        report = export.export(str(tmp_path / "m"), form, tmp_path / f"{form}", dtype=dtype)
        assert (report.embeddings, report.dense_embeddings) == (taken, size)


@pytest.mark.parametrize("form", ["hf", "bitmap", "int8"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_sliced_models_are_smaller_and_come_back(kind, form, tmp_path):
    model = sliceable(kind)
    zero(model)
    model.save_pretrained(tmp_path / "m")
    whole = export.export(str(tmp_path / "m"), form, tmp_path / "whole")
    small = export.export(str(tmp_path / "m"), form, tmp_path / "small", sliced=True)
    assert small.size < whole.size
    assert small.dense == whole.dense
    slicing.slice_units(model)
    again = export.load_folder(tmp_path / "small")
    assert again.config.sliced == model.config.sliced
    if form != "int8":
        assert same(model, again)
        assert torch.equal(helpers.logits(model), helpers.logits(again))
    # A folder that is sliced already stays so.
    export.export(str(tmp_path / "small"), "csr", tmp_path / "again")
    assert same(again, export.load_folder(tmp_path / "again"))


@pytest.mark.parametrize("form", ["hf", "nm-packed", "int4"])
@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "GPT2LMHeadModel"])
def test_branches_survive(kind, form, tmp_path):
    model = pruned(tmp_path / "plain", kind)
    for target in targets.prunable(model)[::2]:
        rows, columns = target.shape
        side_branch.add(target.module, torch.randn(3, columns), torch.randn(rows, 3))
    model.save_pretrained(tmp_path / "m")
    export.export(str(tmp_path / "m"), form, tmp_path / "o")
    again = export.load_folder(tmp_path / "o")
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    if form != "int4":
        assert same(model, again)
        assert torch.equal(helpers.logits(model), helpers.logits(again))
    export.unpack_folder(tmp_path / "o", tmp_path / "back")
    assert same(again, export.load_folder(tmp_path / "back"))
    with pytest.raises(BenchError, match="cannot be sliced"):
        export.export(str(tmp_path / "m"), form, tmp_path / "p", sliced=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("M", "--format", "zip"), "unknown format 'zip'"),
        (("M", "--format", "int4+int8"), "unknown format"),
        (("M", "--format", "hf+int4"), "unknown format"),
        (("M", "--format", "nm-packed"), "no weight has an N:M pattern"),
        (("M", "--format", "hf", "--dtype", "bf16"), "--dtype is for packed formats"),
        (("M", "--format", "csr", "--embeddings", "int8"), "needs a format with int8 or int4"),
        (("M", "--format", "hf", "--embeddings", "int8"), "needs a format with int8 or int4"),
        (("nothing", "--format", "csr"), "neither a record (.json) nor a folder"),
        (("nothing.json", "--format", "csr"), "No such file"),
        (("M/config.json", "--format", "csr"), "corrupt record"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, line, capsys, tmp_path):
    pruned(tmp_path / "m", "BertForSequenceClassification", "unstructured", tokenizer=False)
    first = arguments[0].replace("M", str(tmp_path / "m"))
    code, out, err = run(capsys, "export", first, *arguments[1:], "--out", tmp_path / "o")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_a_folder_that_is_not_empty_is_refused(capsys, tmp_path):
    pruned(tmp_path / "m", "BertForSequenceClassification")
    for command in (("export", tmp_path / "m", "--format", "csr"), ("load", tmp_path / "m")):
        code, _, err = run(capsys, *command, "--out", tmp_path / "m")
        assert (code, err.count("\n")) == (2, 1)
        assert "not empty" in err


@dataclass(frozen=True)
class Valid:
    """An exported folder, the file's bytes, and what its header says."""

    folder: Path
    data: bytes

    @property
    def header(self):
        (length,) = struct.unpack("<Q", self.data[:8])
        return json.loads(self.data[8 : 8 + length]), self.data[8 + length :]

    def load(self, data):
        (self.folder / packed_folder.FILE).write_bytes(data)
        try:
            return export.load_folder(self.folder)
        finally:
            (self.folder / packed_folder.FILE).write_bytes(self.data)

    def load_with(self, tree, body):
        text = json.dumps(tree).encode()
        return self.load(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Small exported folders by format."""

    def made(form):
        place = tmp_path_factory.mktemp(form)
        kind = "GPT2LMHeadModel" if form == "csr" else "BertForSequenceClassification"
        pruned(place / "m", kind, "2:4" if "n" in form else "unstructured", tokenizer=False)
        rounded = "int8" if form == "int4" else None
        export.export(str(place / "m"), form, place / "o", asymmetric=True, embeddings=rounded)
        return Valid(place / "o", (place / "o" / packed_folder.FILE).read_bytes())

    return {form: made(form) for form in ("bitmap", "csr", "nm-packed", "int4")}


def assert_model_or_line(load):
    try:
        line = ""
        assert load().num_parameters() < 10**6
    except BenchError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1000


FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = ["bitmap", "csr", "nm-packed", "int4"]


@pytest.mark.parametrize("form", NAMES)
@FUZZ
@given(data=st.data())
def test_flipped_and_missing_bytes_give_a_model_or_one_line(form, valid, data):
    good = valid[form]
    (length,) = struct.unpack("<Q", good.data[:8])
    # Half of the damage goes to the header, which is a small part of the file.
    place = st.one_of(st.integers(0, 8 + length), st.integers(0, len(good.data) - 1))
    broken = bytearray(good.data)
    for where, value in data.draw(
        st.lists(st.tuples(place, st.integers(0, 255)), min_size=0, max_size=4)
    ):
        broken[where] = value
    cut = data.draw(st.one_of(st.just(len(broken)), place))
    assert_model_or_line(lambda: good.load(bytes(broken[:cut])))


@pytest.mark.parametrize("form", NAMES)
@FUZZ
@given(data=st.data())
def test_changed_headers_give_a_model_or_one_line(form, valid, data):
    tree, body = valid[form].header
    own = json.loads(tree["__metadata__"]["sparsebench"])
    odd = st.one_of(
        st.integers(-(2**70), 2**70),
        st.sampled_from([None, "", "F64", [], {}, [2**62, 2**62], [0], 1.5, True, "x" * 2000]),
    )
    path = [tree] if data.draw(st.booleans()) else [own]
    for _ in range(data.draw(st.integers(1, 3))):
        node = path[-1]
        if not isinstance(node, dict) or not node:
            break
        key = data.draw(st.sampled_from(sorted(node)))
        path.append(node[key])
        last = node, key
    last[0][last[1]] = data.draw(odd)
    if path[0] is own:
        tree["__metadata__"]["sparsebench"] = json.dumps(own)
    assert_model_or_line(lambda: valid[form].load_with(tree, body))


def test_absurd_claims_allocate_nothing(valid, monkeypatch):
    """Terabytes are refused although nothing stops torch from trying."""
    good = valid["csr"]
    tree, body = good.header
    huge = dict(tree)
    huge["transformer.wte.weight"] = {
        "dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]
    }  # fmt: skip
    with pytest.raises(BenchError, match="damaged file"):
        good.load_with(huge, body)
    with pytest.raises(BenchError, match="its header does not end"):
        good.load(struct.pack("<Q", 2**60) + good.data[8:])
    config = json.loads((good.folder / "config.json").read_text())
    for change, line in (
        ({"vocab_size": 10**13}, "damaged file"),
        ({"n_layer": 10**9}, "more layers than the file has tensors"),
        ({"n_embd": -1}, "makes no model|config.json|damaged file"),
        ({"n_head": "many"}, "makes no model|config.json"),
        ({"sliced": {"heads": [10**9], "neurons": [1]}}, "config.sliced states"),
        ({"sliced": {"heads": [True, "x"]}}, "makes no model"),
        ({"architectures": ["os.system"]}, "no model class"),
        ({"auto_map": {"AutoConfig": "x--y.Z"}, "model_type": "x"}, "config.json"),
    ):
        (good.folder / "config.json").write_text(json.dumps(config | change))
        try:
            with pytest.raises(BenchError, match=line):
                export.load_folder(good.folder)
        finally:
            (good.folder / "config.json").write_text(json.dumps(config))


def test_few_bytes_do_not_stand_for_many_weights(tmp_path):
    """CSR without values has any number of columns for the price of its rows."""
    config = AutoConfig.for_model(
        "llama", hidden_size=10**5, num_hidden_layers=1, num_attention_heads=1, vocab_size=1,
        intermediate_size=1, architectures=["LlamaForCausalLM"], tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    matrices = {
        target.name: packed_folder.Matrix(shape=target.shape, dtype="F32", layout="csr", count=0)
        for target in targets.prunable(empty)
    }
    entries = packed_folder.entries_of(empty, matrices)
    header = packed_folder.Header(dtype="F32", matrices=matrices)
    tensors = (
        (name, torch.zeros(entry.shape, dtype=safetensors_file.DTYPES[entry.dtype]))
        for name, entry in entries.items()
    )
    metadata = {"sparsebench": header.model_dump_json()}
    safetensors_file.write(tmp_path / packed_folder.FILE, entries, metadata, tensors)
    with pytest.raises(BenchError, match=r"its \d{7} bytes claim to hold \d{12} bytes"):
        export.load_folder(tmp_path)


def test_overlapping_and_missing_tensors_are_refused(valid):
    good = valid["bitmap"]
    tree, body = good.header
    names = sorted((n for n in tree if n != "__metadata__"), key=lambda n: tree[n]["data_offsets"])
    first, second = names[:2]
    moved = {**tree, second: {**tree[second], "data_offsets": tree[first]["data_offsets"]}}
    with pytest.raises(BenchError, match="damaged file"):
        good.load_with(moved, body)
    less = {n: v for n, v in tree.items() if n != names[-1]}
    size = tree[names[-1]]["data_offsets"][1] - tree[names[-1]]["data_offsets"][0]
    with pytest.raises(BenchError, match="expected Entry"):
        good.load_with(less, body[:-size])
    with pytest.raises(BenchError, match="its header and tensors take"):
        good.load(good.data + b"x")
    with pytest.raises(BenchError, match="its header and tensors take"):
        good.load(good.data[:-1])
