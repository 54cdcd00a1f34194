"""Counts against the papers' numbers and closed forms, from configs without weights."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.core.record_parts import Trainable
from bench.costs.macs import count_macs
from bench.costs.parameters import count_params, count_sparsity
from bench.weights import targets
from bench.weights.patterns import holds
from tests import helpers

NOTHING = Trainable(body=0, head=0)


def meta(kind, auto=AutoModelForSequenceClassification, **config):
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(kind, **config))


@pytest.mark.parametrize(
    ("kind", "auto", "config", "total", "prunable"),
    [
        ("bert", AutoModelForSequenceClassification, {}, 109_483_778, 84_934_656),
        (
            "roberta",
            AutoModelForSequenceClassification,
            {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
            124_647_170,
            84_934_656,
        ),
        ("gpt2", AutoModelForCausalLM, {}, 124_439_808, 84_934_656),
        (
            "gpt2",
            AutoModelForCausalLM,
            {"n_embd": 1024, "n_layer": 24, "n_head": 16},
            354_823_168,
            301_989_888,
        ),
    ],
)
def test_reference_sizes(kind, auto, config, total, prunable):
    model = meta(kind, auto, **config)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(t.shape[0] * t.shape[1] for t in targets.prunable(model)) == prunable


@pytest.mark.parametrize(
    ("kind", "config", "matrices"),
    [
        ("bert", {}, 72),
        ("gpt2", {}, 48),
        ("llama", {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96}, 21),
        ("opt", {}, 72),
    ],
)
def test_target_set_is_the_linear_weights_of_the_blocks(kind, config, matrices):
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    names = [t.name for t in targets.prunable(meta(kind, auto, **config))]
    assert len(names) == matrices
    assert not [n for n in names if "pooler" in n or "classifier" in n or "lm_head" in n]


def linear_macs(model, length):
    return length * sum(t.shape[0] * t.shape[1] for t in targets.prunable(model))


def test_bert_base_macs_are_the_closed_form():
    config = AutoConfig.for_model("bert")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    found = count_macs(model, 128)
    d, layers, T = 768, 12, 128
    blocks = layers * T * (12 * d * d + 2 * T * d)
    assert blocks == 11_173_625_856  # 11.174 G
    pooler, classifier = d * d, 2 * d
    assert found.dense == blocks + pooler + classifier
    assert found.head == classifier
    # Of 85 million normal draws a handful are exactly zero.
    assert found.dense - found.effective == T * sum(helpers.zeros(model).values())
    assert found.tokens == T


@pytest.mark.parametrize("name", helpers.ARCHITECTURES)
def test_macs_of_every_architecture_are_the_closed_form(name):
    model, _, _ = helpers.attached(helpers.cell("dense", name))
    T, d, layers = 20, 64, 2
    head = 2 * d * (1 if name == "tiny-bert" else T)  # decoders score every position
    pooler = d * d if name == "tiny-bert" else 0
    found = count_macs(model, T)
    assert found.dense == linear_macs(model, T) + layers * 2 * T * T * d + pooler + head
    assert found.head == head


@pytest.mark.parametrize("name", helpers.ARCHITECTURES)
def test_effective_macs_leave_out_exactly_the_zeros(name):
    model, _, _ctx = helpers.attached(helpers.cell("magnitude", name, 0.7))
    found = count_macs(model, 20)
    zeros = sum(helpers.zeros(model).values())
    assert found.dense - found.effective == 20 * zeros
    params = count_params(model, NOTHING)
    assert params.nonzero == params.prunable - zeros
    assert params.stored == params.total - zeros


def test_sparsity_by_layer_and_pattern():
    model, _, ctx = helpers.attached(helpers.cell("dense"))
    first = ctx.targets[0]
    first.write(torch.zeros(first.shape))
    found = count_sparsity(model, Pattern("2:4"))
    sizes = [t.shape[0] * t.shape[1] for t in ctx.targets]
    assert found.overall == pytest.approx(sizes[0] / sum(sizes))
    assert (found.min_layer, found.max_layer) == (0.0, 1.0)
    assert not found.pattern_ok


@pytest.mark.parametrize(
    ("pattern", "weight", "ok"),
    [
        ("2:4", [[1, 1, 0, 0, 0, 1, 1, 0]], True),
        ("2:4", [[1, 1, 1, 0, 0, 0, 0, 0]], False),
        ("1:4", [[1, 1, 0, 0]], False),
        ("2:4", [[1, 0, 0]], False),
        ("block:1x2", [[1, 1, 0, 0]], True),
        ("block:2x2", [[1, 1], [0, 0]], False),
        ("unstructured", [[1, 1, 1]], True),
    ],
)
def test_patterns(pattern, weight, ok):
    assert holds(torch.tensor(weight, dtype=torch.float32), Pattern(pattern)) is ok


def test_a_parametrized_model_is_no_export():
    model, _, _ = helpers.attached(helpers.cell("pst"))
    with pytest.raises(BenchError, match="still holds parametrizations"):
        count_sparsity(model, Pattern("unstructured"))


def test_a_language_models_head_is_no_classification_head():
    tied = meta("gpt2", AutoModelForCausalLM)
    untied = meta("llama", AutoModelForCausalLM, hidden_size=64, num_hidden_layers=1)
    classifier = meta("bert")
    names = [[n for n, _ in targets.head_parameters(m)] for m in (tied, untied, classifier)]
    assert names == [[], [], ["classifier.weight", "classifier.bias"]]
