"""What is zeroed can be taken out, and comes back from disk."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.api import BenchError
from bench.costs.macs import count_macs
from bench.sources import loading
from bench.weights import slicing, targets
from tests import helpers

SMALL = {"vocab_size": 261, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "bert": {"intermediate_size": 96},
    "roberta": {"intermediate_size": 96},
    "gpt2": {"n_positions": 64},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "llama": {"intermediate_size": 96, "num_key_value_heads": 2},
}
GONE = [([0], range(1, 11)), ([], range(16)), ([1], [])]
"""Heads and neurons to remove, of each of three layers."""


def taken(neurons):
    """How many dead neurons of a layer a slice takes out: it keeps a multiple of eight."""
    return len(neurons) // 8 * 8


def made(kind, head="classification", **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **CONFIGS[kind], **more})
    config.pad_token_id = 0
    auto = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.0, 0.1)  # biases that are zero could not go wrong
    return model


def zero(model, gone=GONE, rows=False):
    """Zeroes units by their columns, or by their rows and biases."""
    with torch.no_grad():
        for groups, chosen in zip(slicing.units(model), gone, strict=True):
            for units, lost in zip(groups, chosen, strict=True):
                if rows:
                    for target, area in units.rows:
                        index = units.indices(lost, area)
                        weight = target.weight.clone()
                        weight[index] = 0.0
                        target.write(weight)
                        if target.module.bias is not None:
                            target.module.bias[index] = 0.0
                else:
                    weight = units.columns.weight.clone()
                    weight[:, units.indices(lost, units.width)] = 0.0
                    units.columns.write(weight)


def left(model):
    """(heads, neurons) of each layer as the shapes of the matrices have them."""
    return [(heads.count, neurons.count) for heads, neurons in slicing.units(model)]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_sliced_model_computes_what_the_zeroed_one_does(kind, rows):
    model = made(kind)
    before = left(model)
    zero(model, rows=rows)
    expected = helpers.logits(model)
    slicing.slice_units(model)
    assert torch.allclose(helpers.logits(model), expected, atol=1e-5)
    sizes = [(h - len(g[0]), n - taken(g[1])) for (h, n), g in zip(before, GONE, strict=True)]
    assert left(model) == sizes
    assert model.config.sliced == {
        "heads": [h for h, _ in sizes],
        "neurons": [n for _, n in sizes],
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_sliced_model_is_smaller_and_comes_back(kind, tmp_path):
    model = made(kind)
    zero(model)
    model.save_pretrained(tmp_path / "zeroed")
    slicing.slice_units(model)
    model.save_pretrained(tmp_path / "sliced")
    size = {p.name: (p / "model.safetensors").stat().st_size for p in tmp_path.iterdir()}
    lost = sum(p.numel() for p in made(kind).parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    assert lost > 0
    assert size["zeroed"] - size["sliced"] == pytest.approx(4 * lost, abs=256)  # headers differ
    written = json.loads((tmp_path / "sliced" / "config.json").read_text())
    assert written["sliced"] == model.config.sliced
    again = loading.load_model(tmp_path / "sliced")
    assert not again.training
    assert left(again) == left(model)
    assert torch.equal(helpers.logits(again), helpers.logits(model))


def test_tied_embeddings_are_tied_again_and_it_generates(tmp_path):
    model = made("gpt2", "lm")
    zero(model)
    ids = torch.tensor([[5, 6, 7]])
    generate = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, **generate)
    slicing.slice_units(model)
    model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path, type(model))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again.generate(ids, **generate), expected)


def test_slicing_twice_is_slicing_once():
    model = made("bert")
    zero(model)
    slicing.slice_units(model)
    first = model.config.sliced
    slicing.slice_units(model)
    assert model.config.sliced == first


def test_a_layer_keeps_one_head_and_eight_neurons():
    model = made("gpt2")
    everything = (list(range(4)), list(range(256)))
    zero(model, [everything, ([], []), ([], [])])
    expected = helpers.logits(model)
    slicing.slice_units(model)
    assert left(model) == [(1, 8), (4, 256), (4, 256)]
    assert torch.allclose(helpers.logits(model), expected, atol=1e-5)


def test_fewer_heads_are_fewer_multiplications():
    model = made("bert")
    zero(model)
    before = count_macs(model, 16).dense
    slicing.slice_units(model)
    removed = 0
    for heads, neurons in GONE:
        # Four matrices of (16, 64) a head and two attention products of 16 · 16 a token.
        removed += len(heads) * 16 * (4 * 16 * 64 + 2 * 16 * 16) + taken(neurons) * 16 * 2 * 64
    assert before - count_macs(model, 16).dense == removed


@pytest.mark.parametrize(
    ("heads", "neurons", "saved"), [(9, 3072, 1 / 12), (9, 2304, 0.25), (9, 1843, 0.35)]
)
def test_shares_of_bert_base_are_the_papers(heads, neurons, saved):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
    slicing.keep(model, [(range(heads), range(neurons))] * 12)
    kept = sum(t.shape[0] * t.shape[1] for t in targets.prunable(model))
    assert 1 - kept / 84_934_656 == pytest.approx(saved, abs=1e-4)
    if heads == 9 and neurons == 3072:
        biases = 12 * 3 * 192
        assert 84_934_656 - kept + biases == 7_084_800


def test_what_cannot_be_is_refused(tmp_path):
    model = made("bert")
    zero(model)
    slicing.slice_units(model)
    model.config.sliced["heads"][0] = 4
    model.save_pretrained(tmp_path / "lies")
    with pytest.raises(BenchError, match="size mismatch"):
        loading.load_model(tmp_path / "lies")
    with torch.device("meta"):
        strange = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model("distilbert", n_layers=2)
        )
    with pytest.raises(BenchError, match="cannot find heads and neurons"):
        slicing.units(strange)
