"""All stacks of blocks are found, and what no method can prune is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bench.api import BenchError
from bench.export.export import export, load_folder
from bench.export.prune import prune_folder
from bench.weights.blocks import blocks
from bench.weights.targets import prunable
from tests.field import families

BART = dict.fromkeys(families.OWN) | {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 2,
}
T5 = families.T5 | {"num_decoder_layers": 2}
XLM = dict.fromkeys(families.OWN) | {"emb_dim": 32, "n_layers": 3, "n_heads": 4}
PAIRS = [("t5", T5), ("mt5", T5), ("bart", BART), ("pegasus", BART), ("marian", BART)]
TABLES = ("embed", "shared", "lm_head", "relative_attention_bias", "final_logits_bias")


def naive(path):
    """All matrices of the blocks in a file, by a reader that knows no model."""
    state = load_file(path / "model.safetensors")
    return {
        name: tensor
        for name, tensor in state.items()
        if tensor.ndim == 2 and not any(table in name for table in TABLES)
    }


@pytest.mark.parametrize(("kind", "sizes"), PAIRS)
def test_both_stacks_are_pruned(kind, sizes, tmp_path):
    families.build(kind, "Seq2SeqLM", **sizes).save_pretrained(tmp_path / "m")
    found = prune_folder(str(tmp_path / "m"), "magnitude", tmp_path / "o", sparsity=0.5)
    after = naive(tmp_path / "o")
    assert {name.split(".block")[0].split(".layers")[0] for name in after} >= {
        name for name in ("encoder", "decoder") if kind in ("t5", "mt5")
    }
    for name, tensor in after.items():
        assert int((tensor == 0).sum()) == tensor.numel() // 2, name
    assert found.overall == pytest.approx(0.5)
    # Attention 4 and feed-forward 2 (gated: 3) a block; a decoder's block has attention twice.
    dense = 3 if kind == "mt5" else 2
    assert len(after) == 3 * (4 + dense) + 2 * (8 + dense)


@pytest.mark.parametrize(("kind", "sizes"), PAIRS[:3])
def test_the_pruned_pair_has_the_logits_of_masked_weights(kind, sizes, tmp_path):
    model = families.build(kind, "Seq2SeqLM", **sizes)
    model.save_pretrained(tmp_path / "m")
    prune_folder(str(tmp_path / "m"), "magnitude", tmp_path / "o", sparsity=0.5)
    for name, tensor in naive(tmp_path / "o").items():
        weight = model.get_parameter(name)
        small = weight.detach().abs().flatten().kthvalue(weight.numel() // 2).values
        weight.data[weight.abs() <= small] = 0
        assert torch.equal(weight, tensor), name
    ids = torch.tensor(families.ids(2))
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).logits
        got = load_folder(tmp_path / "o")(input_ids=ids, labels=ids).logits
    torch.testing.assert_close(got, wanted)
    export(str(tmp_path / "o"), "bitmap", tmp_path / "p")
    with torch.no_grad():
        packed = load_folder(tmp_path / "p")(input_ids=ids, labels=ids).logits
    torch.testing.assert_close(packed, wanted)


def test_both_stacks_are_pruned_by_a_statistic(tmp_path):
    families.build("bart", "Seq2SeqLM", **BART).save_pretrained(tmp_path / "m")
    (tmp_path / "ids.json").write_text(json.dumps(families.ids()))
    found = prune_folder(
        str(tmp_path / "m"),
        "wanda",
        tmp_path / "o",
        sparsity=0.5,
        calibration=str(tmp_path / "ids.json"),
        length=24,
    )
    assert found.overall == found.min_layer == found.max_layer == 0.5


@pytest.mark.parametrize(
    ("kind", "head", "sizes", "count"),
    [
        ("bert", "MaskedLM", {}, 3),
        ("gpt2", "CausalLM", families.GPT2, 3),
        ("xlm", "MaskedLM", XLM, 6),  # attentions and feed-forwards in lists of their own
        ("albert", "MaskedLM", {"embedding_size": 16}, 1),  # one block, called three times
        ("canine", "SequenceClassification", {}, 5),  # three encoders
        ("t5", "Seq2SeqLM", T5, 5),
        ("switch_transformers", "Seq2SeqLM", families.T5 | {"num_experts": 4}, 15),
    ],
)
def test_blocks_of_every_depth(kind, head, sizes, count):
    model = families.build(kind, head, **sizes)
    found = blocks(model)
    assert len({id(block) for block in found}) == len(found) == count
    inside = {id(m) for block in found for m in block.modules()}
    outside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) not in inside
    ]
    heads = ("lm_head", "cls", "predictions", "pooler", "pred_layer", "classifier", "mapping_in")
    assert all(any(part in name for part in heads) for name in outside)


def test_lists_side_by_side_come_level_by_level():
    model = families.build("xlm", "MaskedLM", **XLM)
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(block)].split(".", 1)[1] for block in blocks(model)] == [
        f"{part}.{level}" for level in range(3) for part in ("attentions", "ffns")
    ]


@pytest.mark.parametrize(
    ("kind", "head", "sizes", "named"),
    [
        ("convbert", "MaskedLM", {}, "pointwise.weight"),
        ("ibert", "MaskedLM", {}, "attention.self.query.weight"),
        (
            "xlnet",
            "CausalLM",
            dict.fromkeys(families.OWN) | {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
            "rel_attn.q ",
        ),
        (
            "funnel",
            "MaskedLM",
            dict.fromkeys(families.OWN)
            | {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
            "r_kernel",
        ),
    ],
)
def test_matrices_of_another_kind_are_refused_by_name(kind, head, sizes, named, tmp_path):
    families.build(kind, head, **sizes).save_pretrained(tmp_path / "m")
    with pytest.raises(BenchError, match=named) as refused:
        prune_folder(str(tmp_path / "m"), "magnitude", tmp_path / "o", sparsity=0.5)
    assert "\n" not in str(refused.value)


def test_one_weight_of_two_layers_is_refused():
    model = families.build("bert", "MaskedLM")
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    with pytest.raises(BenchError, match="share one weight"):
        prunable(model)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "jamba"])
def test_state_space_numbers_and_kernels_are_no_matrices(kind):
    sizes = {"mamba": {"state_size": 4}, "rwkv": {}, "jamba": {"num_experts": 1}}[kind]
    if kind == "jamba":
        sizes |= {"use_mamba_kernels": False, "mamba_d_state": 4, "attn_layer_period": 2}
        sizes |= {"attn_layer_offset": 1, "num_key_value_heads": 2}
    model = families.build(kind, **sizes)
    names = {target.name.rpartition(".")[2] for target in prunable(model)}
    assert not names & {"conv1d", "A_log", "D"}
    assert len({id(t.module) for t in prunable(model)}) == len(prunable(model)) > 9
