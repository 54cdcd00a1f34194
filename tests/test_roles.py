import pytest
import torch

from bench.api import BenchError
from bench.weights import targets
from methods.shared.roles import feed_forward, roles
from tests import meta

SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4}
FFN = {"intermediate_size": 80}
KINDS = {
    "bert": SMALL | FFN,
    "roberta": SMALL | FFN,
    "opt": SMALL | {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "llama": SMALL | FFN | {"num_key_value_heads": 2},
    "gpt2": {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_inner": 80},
}
NAMES = {
    "bert": ("query", "key", "value"),
    "roberta": ("query", "key", "value"),
    "opt": ("q_proj", "k_proj", "v_proj"),
    "llama": ("q_proj", "k_proj", "v_proj"),
    "gpt2": ("c_attn", "c_attn", "c_attn"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_has_one_query_key_and_value(kind):
    found = targets.prunable(meta.model(kind, **KINDS[kind]))
    for role, name in zip("qkv", NAMES[kind], strict=True):
        having = [t for t in found if role in roles(t)]
        assert [t.name.rpartition(".")[2] for t in having] == [name, name]
        width = 24 if kind == "llama" and role != "q" else 48
        assert all(len(range(*roles(t)[role].indices(t.shape[0]))) == width for t in having)


def test_the_fused_matrix_has_the_rows_that_the_model_splits():
    model = meta.model("gpt2", **KINDS["gpt2"])
    (target, *_) = [t for t in targets.prunable(model) if t.parts == 3]
    # GPT2Attention splits the outputs in this order.
    q, k, v = torch.arange(144).split(model.transformer.h[0].attn.split_size)
    for role, rows in zip("qkv", (q, k, v), strict=True):
        assert torch.equal(torch.arange(144)[roles(target)[role]], rows)


@pytest.mark.parametrize("kind", KINDS)
def test_feed_forward_finds_whole_neurons(kind):
    found = feed_forward(targets.prunable(meta.model(kind, **KINDS[kind])))
    assert len(found) == 2
    for ffn in found:
        assert ffn.out.shape == (48, 80)
        assert [t.shape for t in ffn.ins] == [(80, 48)] * (2 if kind == "llama" else 1)
        assert len({t.name.split(".")[2] for t in (*ffn.ins, ffn.out)}) <= 2


def test_feed_forward_refuses_what_it_does_not_know():
    found = targets.prunable(meta.model("bert", **KINDS["bert"]))
    attention = [t for t in found if ".attention." in t.name]
    with pytest.raises(BenchError, match="unknown"):
        feed_forward(attention)
    without = [t for t in found if "intermediate" not in t.name]
    with pytest.raises(BenchError, match="no matrix before it makes its 80 neurons"):
        feed_forward(without)
