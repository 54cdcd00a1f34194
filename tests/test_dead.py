"""A dropped block is the identity, and a slice makes an ordinary model of a smaller depth."""

import json

import pytest
import torch
from safetensors.torch import load_file

import sparsebench
from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.costs import deployed
from bench.costs.macs import count_macs
from bench.costs.parameters import count_sparsity
from bench.export.export import export
from bench.formats.file_sizes import bytes_of
from bench.sources import loading
from bench.weights import dead, slicing
from bench.weights.blocks import blocks
from tests.field import families

IDS = torch.tensor(families.ids(2, 12))
GROUPED = {"num_key_value_heads": 2}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32}
LISTS = {"gemma2": GROUPED | {"head_dim": 8}, "smollm3": GROUPED}
"""Their configs hold a list with an entry a layer."""

DECODERS = {
    "llama": GROUPED,
    "gpt2": families.GPT2,
    "opt": OPT,
    "gpt_neox": {},
    "phi": {},
    "gpt_neo": dict.fromkeys(families.OWN)
    | {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "window_size": 4}
    | {"attention_types": [[["global", "local", "local"], 1]]},
    **LISTS,
}


def made(kind, head="CausalLM", **more):
    model = families.build(kind, head, **DECODERS.get(kind, {}) | more)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.0, 0.1)  # biases that are zero could not go wrong
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def without(model, number):
    """The logits when a block hands on what it is given: the model's own code skips it."""

    def skip(block, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    handle = blocks(model)[number].register_forward_hook(skip, with_kwargs=True)
    found = logits(model)
    handle.remove()
    return found


@pytest.mark.parametrize("kind", DECODERS)
def test_a_silent_block_is_the_identity_and_leaves(kind, tmp_path):
    model = made(kind)
    dead.check_silence(model)
    expected = without(model, 1)
    assert not torch.allclose(expected, logits(model), atol=1e-4)
    dead.silence(model, [1])
    assert dead.silent(model) == [1]
    assert torch.allclose(logits(model), expected, atol=1e-5)
    removable = dead.removable(model)
    size = sum(p.numel() for p in model.parameters())
    dead.remove(model)
    assert size - removable == sum(p.numel() for p in model.parameters())
    assert not hasattr(model.config, "sliced")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == len(blocks(again)) == 2
    assert torch.allclose(logits(again), expected, atol=1e-5)
    for key, value in vars(again.config).items():
        if key in ("layer_types", "no_rope_layers"):
            assert len(value) == 2
    # Each block has its own place in the cache.
    more = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    cached = again.generate(IDS, **more, use_cache=True)
    assert torch.equal(cached, again.generate(IDS, **more, use_cache=False))


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_layers_lose_the_entry_of_their_block(kind):
    model = made(kind)
    key = "layer_types" if kind == "gemma2" else "no_rope_layers"
    before = list(getattr(model.config, key))
    dead.silence(model, [0])
    dead.remove(model)
    assert getattr(model.config, key) == before[1:]


@pytest.mark.parametrize(
    ("kind", "head", "more", "reason"),
    [
        ("bert", "MaskedLM", {}, "norms follow the sum"),
        ("opt", "CausalLM", OPT | {"do_layer_norm_before": False}, "norms follow the sum"),
        ("t5", "Seq2SeqLM", families.T5, "in one list"),
    ],
)
def test_what_cannot_lose_blocks_is_refused_in_one_line(kind, head, more, reason):
    model = families.build(kind, head, **more)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(BenchError, match=reason) as error:
        sparsebench.prune(model, "shortgpt", sparsity=0.5, calibration=IDS.tolist())
    assert "\n" not in str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_the_share_is_rounded_down_and_one_block_remains():
    model = families.build("llama", num_hidden_layers=8, num_key_value_heads=2)
    found = [dead.lost_blocks(model, share) for share in (0.0, 0.1, 0.125, 0.29, 0.25, 0.99)]
    assert found == [0, 0, 1, 2, 2, 7]


def test_all_blocks_silent_leaves_the_first():
    model = made("gpt2")
    dead.silence(model, range(3))
    expected = logits(model)
    dead.remove(model)
    assert len(blocks(model)) == 1
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_dead_units_go_with_the_blocks_that_remain(tmp_path):
    model = made("llama")
    dead.silence(model, [0])
    heads, neurons = slicing.units(model)[2]
    for units, chosen in ((heads, [1]), (neurons, range(3, 16))):
        columns = units.indices(chosen, units.width)
        units.columns.write(units.columns.weight.index_fill(1, columns, 0.0))
    expected, removable = logits(model), dead.removable(model)
    size = sum(p.numel() for p in model.parameters())
    export(model, "hf", tmp_path / "small", sliced=True)
    again = loading.load_model(tmp_path / "small")
    assert again.config.sliced == {"heads": [2, 1], "neurons": [64, 56]}
    assert size - removable == sum(p.numel() for p in again.parameters())
    assert torch.allclose(logits(again), expected, atol=1e-5)
    # A sliced model can lose further blocks.
    dead.silence(again, [0])
    expected = logits(again)
    dead.remove(again)
    assert again.config.sliced == {"heads": [1], "neurons": [56]}
    assert torch.allclose(logits(again), expected, atol=1e-5)


def test_a_slice_keeps_a_multiple_of_eight_neurons():
    group = slicing.units(made("llama"))[1][1]
    kept = {left: group.rounded(left) for left in (1, 8, 9, 56, 57, group.count)}
    assert kept == {1: 8, 8: 8, 9: 16, 56: 56, 57: 64, 64: 64}
    group.columns.write(group.columns.weight.index_fill(1, torch.arange(3, 16), 0.0))
    alive, chosen = set(group.alive()), group.to_keep()
    assert (len(alive), len(chosen)) == (51, 56)
    assert alive < set(chosen)
    assert chosen == sorted(chosen)


def test_a_folder_loses_the_names_of_lost_blocks(tmp_path):
    source = families.save(tmp_path / "whole", "llama", **GROUPED)
    model = loading.load_model(source)
    dead.silence(model, [1])
    expected = logits(model)
    model.save_pretrained(source)
    export(str(source), "hf", tmp_path / "small", sliced=True)
    names = load_file(tmp_path / "small" / "model.safetensors")
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1"}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 2
    again = type(model).from_pretrained(tmp_path / "small").eval()
    assert torch.allclose(logits(again), expected, atol=1e-5)
    report = export(str(source), "bitmap", tmp_path / "packed", sliced=True)
    assert report.dense == 4 * sum(p.numel() for p in model.parameters())
    assert torch.allclose(logits(loading_of(tmp_path / "packed")), expected, atol=1e-5)


def loading_of(folder):
    from bench.export.load import load

    return load(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_macs_bytes_and_the_deployed_form_are_those_of_the_shallow_model(kind):
    model = made(kind)
    shallow = families.build(kind, **DECODERS[kind] | {"num_hidden_layers": 2})
    dead.silence(model, [2])
    macs = count_macs(model, 12, Pattern("blocks"))
    assert macs.realizable == count_macs(shallow, 12).dense < macs.dense
    sizes = bytes_of(model, Pattern("blocks"), None)
    assert sizes.formats["sliced"] == 4 * sum(p.numel() for p in shallow.parameters())
    made_, form = deployed.deployed(model, torch.float32)
    assert (form, len(blocks(made_))) == (deployed.SLICED, 2)
    assert len(blocks(deployed.dense_twin(model, torch.float32))) == 3
    found = count_sparsity(model, Pattern("blocks"))
    assert found.pattern_ok
    assert found.overall == pytest.approx(1 / 3)


def test_half_a_block_does_not_hold_the_pattern():
    model = made("llama")
    with torch.no_grad():
        blocks(model)[0].mlp.up_proj.weight[:40] = 0.0
    assert not count_sparsity(model, Pattern("blocks")).pattern_ok
