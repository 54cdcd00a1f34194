"""FLAP against its definition (methods/README.md, flap)."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsebench
from bench.sources import loading
from bench.weights import slicing
from bench.weights.added_biases import add_biases
from bench.weights.targets import prunable
from methods.flap import lowest
from methods.shared.input_statistics import Moments
from tests.field import families
from tests.methods.test_wanda_sp import IDS, dead_units, inputs_of, matrix, readers
from tests.test_dead import made

TOKENS = torch.tensor(IDS)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def scores_of(model, kind, metric):
    """Every unit's standardised score, column by column: [(score, weights, block, kind, unit)]."""
    found = []
    width = 32
    for block in range(3):
        for role, (module, columns) in enumerate(readers(model, kind, block)):
            weight, x = matrix(kind, module), inputs_of(model, module)
            raw = []
            for j in range(weight.shape[1]):
                column = [float(v) for v in x[:, j]]
                mean = sum(column) / len(column)
                spread = sum((v - mean) ** 2 for v in column) / len(column)
                size = sum(float(w) ** 2 for w in weight[:, j])
                norm = sum(v * v for v in column) ** 0.5
                wanda = sum(abs(float(w)) * norm for w in weight[:, j]) / len(weight)
                raw.append({"wifv": spread * size, "ifv": spread, "wifn": wanda}[metric])
            mean = sum(raw) / len(raw)
            std = (sum((f - mean) ** 2 for f in raw) / (len(raw) - 1)) ** 0.5
            z = [(f - mean) / std for f in raw]
            for unit, inside in enumerate(columns):
                share = len(inside)
                if role == 0:  # q, o: share each; k, v: 8 rows a key head
                    taken = width * (2 * share + 2 * 8)
                else:
                    taken = width * (3 if kind == "llama" else 2)
                found.append((sum(z[j] for j in inside) / share, taken, block, role, unit))
    return found


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("llama", "wifv"), ("llama", "ifv"), ("llama", "wifn"), ("gpt2", "wifv"), ("opt", "wifv")],
)
def test_the_lowest_of_the_whole_model_go(kind, metric):
    model = made(kind)
    rows = scores_of(model, kind, metric)
    total, gone, best = sum(r[1] for r in rows), [], {}
    for row in rows:
        best[row[2:4]] = max(best.get(row[2:4], row), row)
    ranked = [row for row in sorted(rows) if row not in best.values()]
    sums = [sum(r[1] for r in ranked[:n]) for n in range(len(ranked) + 1)]
    n = min(range(len(sums)), key=lambda n: abs(sums[n] - 0.4 * total))
    gone = {row[2:] for row in ranked[:n]}
    found = sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS, metric=metric)
    dead = {
        (block, role, unit)
        for block in range(3)
        for role, (module, columns) in enumerate(readers(model, kind, block))
        for unit in dead_units(kind, matrix(kind, module), columns)
    }
    assert dead == gone
    assert found.sparsity == pytest.approx(sums[n] / total, abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_bias_keeps_the_mean_of_what_goes(kind):
    model = made(kind)
    before, means = {}, {}
    for block in range(3):
        for role, (module, _) in enumerate(readers(model, kind, block)):
            bias = torch.zeros(32) if module.bias is None else module.bias.detach().clone()
            before[block, role] = matrix(kind, module), bias
            means[block, role] = inputs_of(model, module).mean(0)
    found = sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS)
    assert found.notes["without_bias"] == 0
    for block in range(3):
        for role, (module, _) in enumerate(readers(model, kind, block)):
            weight, bias = before[block, role]
            gone = weight - matrix(kind, module)
            expected = bias + gone @ means[block, role]
            assert torch.allclose(module.bias, expected, atol=1e-5)


@pytest.mark.parametrize("bias", ["present", "none"])
def test_without_a_flag_the_config_stays_and_the_method_says_so(bias, caplog):
    model = made("llama")
    found = sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS, bias=bias)
    assert not model.config.attention_bias
    assert not model.config.mlp_bias
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert found.notes["without_bias"] > 0
    assert ("no bias that could keep the mean" in caplog.text) == (bias == "present")


def test_an_architecture_without_the_flag_gets_no_bias():
    model = made("qwen2", num_key_value_heads=2)
    names = {name for name, _ in model.named_parameters()}
    found = sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS)
    assert {name for name, _ in model.named_parameters()} == names
    assert found.notes["without_bias"] > 0


def test_added_biases_change_nothing_and_only_where_they_are_wanted():
    model = made("llama")
    expected = logits(model)
    add_biases(model, [t for t in prunable(model) if t.name.endswith("o_proj")])
    assert model.config.attention_bias
    assert not model.config.mlp_bias
    assert torch.equal(logits(model), expected)
    new = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert new == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_folder_is_sliced_for_real_and_loads(kind, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path / "whole")
    model = loading.load_model(tmp_path / "whole", stored_dtype=True)
    sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS)
    expected = logits(model)
    model.save_pretrained(tmp_path / "zeros")
    assert torch.allclose(logits(type(model).from_pretrained(tmp_path / "zeros")), expected)
    sparsebench.export(tmp_path / "zeros", "hf", tmp_path / "small", sliced=True)
    again = sparsebench.load(tmp_path / "small")
    assert torch.allclose(logits(again), expected, atol=1e-5)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert written["sliced"]["heads"] == [h.count for h, _ in slicing.units(again)]


def test_the_command_writes_added_biases_beside_their_weights(tmp_path):
    from bench.export.prune import prune_folder

    source = families.save(tmp_path / "m", "llama", num_key_value_heads=2)
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(IDS))
    prune_folder(str(source), "flap", tmp_path / "o", sparsity=0.4, calibration=str(ids))
    again = loading.load_model(tmp_path / "o")
    twin = loading.load_model(source)
    sparsebench.prune(twin, "flap", sparsity=0.4, calibration=IDS)
    assert again.config.attention_bias
    assert torch.allclose(logits(again), logits(twin), atol=1e-5)


def test_added_biases_get_the_dtype_of_the_model():
    model = made("llama").to(torch.bfloat16)
    sparsebench.prune(model, "flap", sparsity=0.4, calibration=IDS)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model).isfinite().all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_mean_and_variance_do_not_depend_on_the_batches(sizes, seed):
    x = 100 + torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed))
    statistic = Moments(4, torch.device("cpu"))
    for part in x.split(sizes):
        statistic.add(part)
    assert torch.allclose(statistic.mean, x.mean(0), rtol=1e-5)
    assert torch.allclose(statistic.variance, x.var(0, correction=0), atol=1e-3)
    assert torch.allclose(statistic.norms, x.norm(dim=0), rtol=1e-5)


def test_the_best_unit_of_each_group_stays():
    scores = [torch.tensor([0.0, 1.0]), torch.tensor([5.0, 4.0, 3.0])]
    gone = lowest(scores, [10, 1], 1.0)
    assert [g.tolist() for g in gone] == [[0], [2, 1]]
    # 11 of 23 are closest to a half.
    assert [g.tolist() for g in lowest(scores, [10, 1], 0.5)] == [[0], [2]]
    assert [g.tolist() for g in lowest(scores, [10, 1], 0.0)] == [[], []]
