"""Multiply-adds of every architecture from its config alone, against closed forms of the products.

One sequence of T tokens, L layers of width d, an FFN of width f, E experts of which each token
takes k, and fvcore as a second counter where it can count.
"""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig

from bench.api import BenchError
from bench.cli import main
from bench.core.cell import Budget
from bench.costs import products, without_weights
from bench.costs.macs import by_target
from bench.costs.products import forward_macs
from bench.planning.setups import setups
from bench.sources.architectures import class_of, empty
from bench.weights import side_branch, targets
from bench.weights.unstacked import unstack
from tests import helpers
from tests.field import families
from tests.field.families import GPT2, OWN, T5

T, L, d, f, V = 24, 3, 32, 64, 261

POOLED = d * d + 2 * d  # pooler and two labels, of the first token alone
QKV_OUT, FFN, ATTENTION = 4 * T * d * d, 2 * T * d * f, 2 * T * T * d
BLOCKS = L * (QKV_OUT + FFN + ATTENTION)

DISTILBERT = dict.fromkeys(OWN) | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}


def config(kind, **more):
    sizes = {k: v for k, v in (families.SIZES | more).items() if v is not None}
    return AutoConfig.for_model(kind, **sizes)


def count(kind, head=None, **more):
    """Multiply-adds of a family by module, from a config without weights."""
    made = config(kind, **more)
    return forward_macs(empty(class_of(made, head), made), T)


@pytest.mark.parametrize(
    ("kind", "more", "head"),
    [
        ("distilbert", DISTILBERT, POOLED),
        ("albert", {"embedding_size": 16}, POOLED + T * 16 * d),  # one block, called L times
        ("mpnet", {"relative_attention_num_buckets": 8}, POOLED),
        ("esm", {"mask_token_id": 4, "vocab_list": None}, POOLED),
        ("roformer", {"embedding_size": 32}, POOLED),
        ("fnet", {}, POOLED + T * d * d - L * (QKV_OUT + ATTENTION)),  # Fourier transforms
        ("ibert", {}, POOLED),
    ],
)
def test_encoders_whose_configs_lack_is_decoder_have_the_closed_form(kind, more, head):
    assert count(kind, **more)[""] == BLOCKS + head


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("bloom", dict.fromkeys(OWN) | {"n_layer": 3, "n_head": 4, "hidden_size": 32}, 8 * d * d),
        ("mpt", dict.fromkeys(OWN) | {"n_layers": 3, "n_heads": 4, "d_model": 32}, 8 * d * d),
        ("persimmon", {}, 2 * d * f),
        ("nemotron", {"num_key_value_heads": 4}, 2 * d * f),
        ("gpt2", GPT2, 8 * d * d),
        ("llama", {"num_key_value_heads": 4}, 3 * d * f),
    ],
)
def test_decoders_with_operators_that_multiply_nothing_have_the_closed_form(kind, more, expected):
    counted = count(kind, **more)
    assert counted[""] == L * (QKV_OUT + ATTENTION + T * expected) + T * d * V
    head = empty(class_of(config(kind, **more)), config(kind, **more))
    assert sum(counted[name] for name in targets.head_modules(head)) == T * d * V


def test_debertas_disentangled_attention_multiplies_positions_too():
    # Content × content, content × position and position × content; keys and queries of positions.
    span = 2 * 8
    positions = 2 * span * d * d + 2 * T * span * d
    assert count("deberta-v2", **DEBERTA)[""] == BLOCKS + L * positions + POOLED


@pytest.mark.parametrize(
    ("kind", "more", "matrices"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3}, 3 * f),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 3}, 3 * f),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 3, "head_dim": 8}, 3 * f),
        ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, 3 * f),
        ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 3}, 3 * f),
    ],
)
def test_each_token_meets_the_experts_that_it_is_routed_to(kind, more, matrices):
    k = more["num_experts_per_tok"]
    block = QKV_OUT + ATTENTION + T * 4 * d + k * T * matrices * d  # with the router of 4 rows
    assert count(kind, num_key_value_heads=4, **more)[""] == L * block + T * d * V


def test_shared_experts_are_counted_once_a_token():
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    more |= {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 1}
    block = QKV_OUT + ATTENTION + T * d * (4 + 1 + 2 * 3 * 16 + 3 * 48)
    counted = count("qwen2_moe", num_key_value_heads=4, **more)
    assert counted[""] == L * block + T * d * V


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mixtral", {"num_local_experts": 4, "num_key_value_heads": 2}),
        ("jetmoe", {"num_local_experts": 4, "num_key_value_heads": 2, "kv_channels": 8}),
        ("t5", T5),
        ("mamba", {"state_size": 4}),
    ],
)
def test_a_config_and_weights_have_the_same_count(kind, more):
    head = "Seq2SeqLM" if kind == "t5" else "CausalLM"
    model = families.build(kind, head, **more)
    unstack(model)  # as the loader does
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = forward_macs(model, T)
    assert whole == forward_macs(empty(type(model), model.config), T)
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_encoder_decoders_count_both_stacks_and_the_attention_between_them():
    encoder = QKV_OUT + ATTENTION + FFN
    expected = L * (2 * encoder + QKV_OUT + ATTENTION) + T * d * V
    assert count("t5", **T5)[""] == expected
    sizes = dict.fromkeys(OWN) | {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128}
    for kind in ("bart", "pegasus", "marian"):
        more = sizes | {"decoder_start_token_id": 0, "scale_embedding": False}
        assert count(kind, **more)[""] == expected


def test_a_shared_block_is_counted_as_often_as_it_runs():
    counted = count("albert", embedding_size=16)
    shared = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert counted[f"{shared}.attention.query"] == L * T * d * d
    assert counted[shared] == BLOCKS


class Expert(nn.Module):
    """One of several that a block owns; they take turns."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(d, f, bias=False)
        self.w2 = nn.Linear(f, d, bias=False)


def test_experts_share_the_products_of_their_layer_evenly():
    model = families.build("gpt2", **GPT2)
    for block in model.transformer.h:
        block.experts = nn.ModuleList(Expert() for _ in range(4))
    macs = dict(forward_macs(model, T))
    for i in range(L):
        for e in range(4):
            macs[f"transformer.h.{i}.experts.{e}.w1"] = 100 * i + e
            macs[f"transformer.h.{i}.experts.{e}.w2"] = 7 * e
    products = by_target(model, macs)
    for i in range(L):
        for e in range(4):
            assert products[f"transformer.h.{i}.experts.{e}.w1"] == 100 * i + 1.5
            assert products[f"transformer.h.{i}.experts.{e}.w2"] == 10.5
        assert products[f"transformer.h.{i}.attn.c_attn"] == 3 * T * d * d


def test_an_update_of_a_mixture_takes_three_forwards():
    made = config("mixtral", num_local_experts=4, num_key_value_heads=4)
    (setup,) = setups(["dense"], None, 0.0, {})
    budget = Budget(steps=10, batch=2, length=T)
    kind = class_of(made)
    attached = without_weights.attach(setup.method, setup.cell, budget, kind, made)
    forward = forward_macs(attached.model, T)[""]
    assert without_weights.update_macs(attached) == 3 * forward


@pytest.mark.parametrize("name", helpers.ARCHITECTURES)
def test_fvcore_counts_the_same(name):
    model, _, _ = helpers.attached(helpers.cell("dense", name))
    model.set_attn_implementation("eager")

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    traced = FlopCountAnalysis(Logits(), (torch.ones(1, 20, dtype=torch.long),))
    traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    for norm in ("layer_norm", "batch_norm", "native_layer_norm"):
        traced.set_op_handle(f"aten::{norm}", lambda *_: 0)
    macs = forward_macs(model, 20)
    by_module = traced.by_module()
    assert macs[""] == by_module[""]
    for target in targets.prunable(model):
        assert macs[target.name] == by_module[f"model.{target.name}"] > 0


def test_a_branch_is_counted_apart_from_its_module():
    model = families.build("gpt2", **GPT2)
    target = targets.prunable(model)[0]
    before = forward_macs(model, T)
    side_branch.add(target.module, torch.ones(5, d), torch.ones(3 * d, 5))
    after = forward_macs(model, T)
    assert after[target.name] == before[target.name]
    assert after[f"{target.name}.branch"] == after[""] - before[""] == T * 5 * 4 * d


def test_a_linear_layer_whose_products_the_counter_does_not_see_is_refused(monkeypatch):
    model = families.build("llama", num_key_value_heads=4)
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: (x[..., None, :] * weight).sum(-1))
    # rows · columns of the first matrix, once a token
    with pytest.raises(BenchError, match="q_proj multiplies 24,576 times, counted are 0"):
        forward_macs(model, T)


@torch.library.custom_op("fieldtests::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.t()


@product.register_fake
def _(x, weight):
    return x.new_empty(*x.shape[:-1], len(weight))


class Foreign(nn.Linear):
    """A linear layer with a kernel of its own."""

    def forward(self, x):
        return product(x, self.weight)


class Bilinear(nn.Linear):
    """A layer whose product torch knows by another name."""

    def forward(self, x):
        return F.bilinear(x, x[..., :1], self.weight[..., None])


@pytest.mark.parametrize(
    ("kind", "name"), [(Foreign, "fieldtests.product"), (Bilinear, "aten._trilinear")]
)
def test_operators_that_may_hide_products_are_refused(kind, name):
    model = families.build("llama", num_key_value_heads=4)
    model.model.layers[1].mlp.up_proj = kind(d, f, bias=False)
    with pytest.raises(BenchError, match=f"products without a count: {name}"):
        forward_macs(model, T)


def test_a_model_that_needs_values_is_refused_in_one_line():
    model = families.build("llama", num_key_value_heads=4)

    def hook(module, inputs, output):
        return output * float(output.sum())

    model.model.layers[1].mlp.register_forward_hook(hook)
    with pytest.raises(BenchError, match="LlamaForCausalLM cannot be counted: ") as error:
        forward_macs(model, T)
    assert "\n" not in str(error.value)


def test_masks_and_positions_are_those_of_a_real_run():
    # Global attention would cost Longformer the products of three more matrices.
    more = {"attention_window": [8] * L, "max_position_embeddings": 130}
    model = families.build("longformer", "SequenceClassification", **more)
    counted = forward_macs(model, T)
    assert counted["longformer.encoder.layer.0.attention.self.query"] == T * d * d
    assert counted["longformer.encoder.layer.0.attention.self.query_global"] == d * d


def test_counting_leaves_the_random_numbers_of_a_run_alone():
    state = torch.random.get_rng_state()
    count("bart", head="seq2seq-lm")
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("method", ["dense", "magnitude"])
def test_a_model_without_a_count_ends_the_cell_before_it_is_loaded(monkeypatch, method):
    def fit_cell(*_):
        raise AssertionError("the cell was fitted")

    monkeypatch.setattr("bench.pipeline.run.fit_cell", fit_cell)
    monkeypatch.setattr(products, "_PRODUCTS", frozenset({"gelu"}))
    with pytest.raises(BenchError, match="cannot be counted: products without a count: aten.gelu"):
        helpers.run_cell(helpers.cell(method))


@pytest.mark.parametrize(("kind", "more"), [("deberta-v2", DEBERTA), ("mpnet", {}), ("fnet", {})])
def test_encoders_run_as_cells(tmp_path, monkeypatch, kind, more):
    families.save(tmp_path / "own" / "encoder", kind, "MaskedLM", **more)
    monkeypatch.setenv("SPARSEBENCH_HUB", str(tmp_path))
    cell = helpers.cell("dense", "own/encoder", budget__steps=2, budget__batch=4, budget__length=T)
    made = helpers.run_cell(cell)
    assert made.macs.dense == count(kind, **more)[""]
    assert made.macs.train > 2 * made.macs.dense


@pytest.mark.parametrize(
    ("kind", "more"), [("distilbert", DISTILBERT), ("mpnet", {}), ("deberta-v2", DEBERTA)]
)
def test_the_command_counts_encoders(tmp_path, capsys, kind, more):
    config(kind, **more).save_pretrained(tmp_path)
    assert main.main(["count", str(tmp_path), "--method", "magnitude", "--length", str(T)]) == 0
    assert f"{count(kind, **more)['']:,} MACs forward" in capsys.readouterr().out
