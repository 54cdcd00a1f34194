"""Which parameters' rates scale with the width (methods/README.md, optimizer)."""

import pytest
import torch
from torch import nn

from bench.weights import targets
from bench.weights.learning_rates import wide
from methods.dense import Dense
from tests import helpers
from tests.field.families import GPT2, build

FACTOR = 768 / 64  # the tiny models' width is 64


def factors(model, method, stated):
    """What each parameter's rate was multiplied by, by name."""
    rates = {id(p): g["lr"] for g in method.param_groups(model) for p in g["params"]}
    held = {n: rates[id(p)] for n, p in model.named_parameters() if id(p) in rates}
    return {n: rate / stated(n) for n, rate in held.items()}


def attached(name, model="tiny-bert", **more):
    sparse, method, _ = helpers.attached(helpers.cell(name, model, **more))
    return sparse, method


@pytest.mark.parametrize("model", helpers.ARCHITECTURES)
def test_hidden_matrices_and_the_head_scale_and_nothing_else(model):
    dense, method = attached("dense", model)
    found = factors(dense, method, lambda _: method.params.lr)
    assert len(found) == len(list(dense.parameters()))
    modules = dict(dense.named_modules())
    for name, factor in found.items():
        owner, _, leaf = name.rpartition(".")
        matrix = leaf == "weight" and not isinstance(modules[owner], nn.Embedding)
        matrix = matrix and modules[owner].weight.ndim == 2
        assert factor == pytest.approx(FACTOR if matrix else 1.0), name


SCORES = [
    ("movement", "unstructured", {}),
    ("movement", "block:16x16+neurons", {}),
    ("l0", "unstructured", {}),
]


@pytest.mark.parametrize(("name", "pattern", "more"), SCORES)
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
def test_scores_and_gates_keep_their_rate_and_their_weights_scale(name, pattern, more, model):
    sparse, method = attached(name, model, pattern=pattern, **more)
    p = method.params
    found = factors(sparse, method, lambda n: p.score_lr if n.endswith(".scores") else p.lr)
    scores = [factor for n, factor in found.items() if n.endswith(".scores")]
    assert scores
    assert set(scores) == {1.0}
    originals = [f for n, f in found.items() if n.endswith("weight.original")]
    assert len(originals) == len(targets.prunable(sparse))
    assert set(originals) == {FACTOR}


ADDED = {
    "lora": ({"A": FACTOR, "B": 1.0}, {}),
    "rosa": ({"A": FACTOR, "B": 1.0, "values": FACTOR}, {}),
    "dsee": ({"A": FACTOR, "B": 1.0, "theta": 1.0}, {"omega": "random"}),
    "pst": ({"U": 1.0, "V": FACTOR, "A": 1.0, "B": 1.0, "R": 1.0, "C": 1.0}, {}),
    "losparse": ({"down": FACTOR, "up": FACTOR}, {"pattern": "rows"}),
    "ast": ({"down": FACTOR, "up": FACTOR}, {"pattern": "2:4", "slorb": "mean", "kd": 0.0}),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_a_method_adds_scales_where_it_reads_the_width(name):
    expected, more = ADDED[name]
    model = "tiny-gpt2" if name == "pst" else "tiny-bert"
    sparse, method = attached(name, model, **more)
    heads = {n for n, _ in targets.head_parameters(sparse)}
    p = {n: method.params.__dict__.get(n) for n in ("lr", "head_lr", "sparse_lr")}

    def stated(n):
        if n in heads and p["head_lr"]:
            return p["head_lr"]
        return p["sparse_lr"] if n.endswith(".values") else method.params.lr

    seen = set()
    for n, factor in factors(sparse, method, stated).items():
        if "parametrizations.weight." in n or ".branch." in n:
            key = next((part for part in reversed(n.split(".")) if part in expected), None)
            if key:
                seen.add(key)
                assert factor == pytest.approx(expected[key]), n
    assert seen == set(expected)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_stacks_of_experts_and_their_routers_scale(kind):
    sizes = {"num_local_experts": 4, "num_experts": 4, "num_key_value_heads": 2}
    model = build(kind, **sizes, moe_intermediate_size=16, mlp_only_layers=[])
    scaled = wide(model)
    stacks = {n: id(p) in scaled for n, p in model.named_parameters() if p.ndim > 2}
    assert stacks
    assert all(stacks.values())
    routers = [id(p) in scaled for n, p in model.named_parameters() if "gate.weight" in n]
    assert all(routers)
    tables = [id(p) in scaled for n, p in model.named_parameters() if "embed" in n or "norm" in n]
    assert not any(tables)


def test_convolutions_along_the_sequence_do_not_scale_and_state_tables_do_not():
    own = {"state_size": 4, "num_heads": None, "num_attention_heads": None}
    model = build("mamba", intermediate_size=None, max_position_embeddings=None, **own)
    scaled = wide(model)
    names = {n for n, p in model.named_parameters() if id(p) in scaled}
    assert any("in_proj.weight" in n for n in names)
    assert not any("conv1d" in n or "A_log" in n or n.endswith("D") for n in names)


def test_a_tied_head_is_an_embedding():
    model = build("gpt2", **GPT2)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert id(model.lm_head.weight) not in wide(model)


def test_a_convolution_that_mixes_channels_scales():
    mixing, along = nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3, groups=8)
    assert wide(nn.Sequential(mixing, along)) == {id(mixing.weight)}


def test_at_the_base_width_all_rates_are_as_stated():
    model = build("bert", "SequenceClassification", hidden_size=768, num_hidden_layers=1,
                  num_attention_heads=12)  # fmt: skip
    groups = Dense(Dense.Params(lr=3e-5)).param_groups(model)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(3e-5, 0.01), (3e-5, 0.0)]


def test_first_steps_move_features_alike_at_all_widths():
    # μP's promise: one Adam step of a layer (and of a low-rank pair) moves its outputs by Θ(1).
    class Config:
        hidden_size = 0

    moves = {}
    for width in (64, 256, 1024):
        torch.manual_seed(0)
        layer = nn.Linear(width, width, bias=False)
        layer.config = Config()
        layer.config.hidden_size = width
        x = torch.randn(16, width)
        groups = Dense.groups(layer, (list(layer.parameters()), 1e-3, 0.0))
        optimizer = torch.optim.AdamW(groups)
        before = layer(x)
        (before * torch.randn(width)).sum().backward()
        optimizer.step()
        moves[width] = (layer(x) - before).abs().mean().item()
    ratio = max(moves.values()) / min(moves.values())
    assert ratio < 1.5, moves
