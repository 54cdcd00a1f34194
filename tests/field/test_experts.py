"""Experts that transformers stacks in one parameter are matrices of their own."""

import copy
import json
import re

import pytest
import torch
from safetensors import safe_open

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.costs.by_method import cost_report
from bench.export.export import export, load_folder, unpack_folder
from bench.export.prune import prune_folder
from bench.sources.loading import load_model
from bench.sources.saving import save_model
from bench.weights.targets import block_elements, prunable
from bench.weights.unstacked import Unstacked, stacked, unstack
from methods.shared import blockwise
from methods.shared.input_statistics import ColumnNorms
from tests.field import families
from tests.methods.test_blockwise import context

pytestmark = pytest.mark.usefixtures("float32_passes")

MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
MLA |= {"v_head_dim": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
FAMILIES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "deepseek_v3": MLA | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "llama4_text": {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 64},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64, "head_dim": 8},
}
FAMILIES["deepseek_v3"] |= {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
FAMILIES["deepseek_v3"] |= {"num_key_value_heads": 4}
ROUTER = re.compile(r"router|\.gate\.|shared_expert_gate")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(kind):
    model = families.build(kind, **({"num_key_value_heads": 2} | FAMILIES[kind]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # some are zero in a new model, and gpt_oss leaves some unset
            generator = torch.Generator().manual_seed(len(name))
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def written(kind, folder):
    made(kind).save_pretrained(folder)
    return folder


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def matrices(folder):
    """All matrices of the blocks as a file holds them, whatever its names for experts are."""
    return {
        name: tensor
        for name, tensor in tensors(folder).items()
        if ".layers." in name and "bias" not in name and "conv" not in name and tensor.ndim >= 2
    }


def batch():
    ids = torch.tensor(families.ids(2))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", FAMILIES)
def test_unstacking_changes_neither_logits_nor_gradients_nor_files(kind, tmp_path):
    plain = made(kind)
    if hasattr(plain.config, "_experts_implementation"):
        plain.config._experts_implementation = "eager"
    ours = copy.deepcopy(plain)
    unstack(ours)
    stacks = {n: m for n, m in ours.named_modules() if isinstance(m, Unstacked)}
    assert stacks
    left, right = plain(**batch()), ours(**batch())
    torch.testing.assert_close(right.logits, left.logits)
    left.loss.backward()
    right.loss.backward()
    for name, module in stacks.items():
        wanted = plain.get_parameter(name).grad
        got = torch.stack([linear.weight.grad for linear in module.linears])
        torch.testing.assert_close(got.mT if module.transposed else got, wanted)
    plain.save_pretrained(tmp_path / "plain")
    save_model(ours, tmp_path / "ours")
    first, second = tensors(tmp_path / "plain"), tensors(tmp_path / "ours")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(ours(**batch()).logits, right.logits)  # as before it was saved


@pytest.mark.parametrize("kind", FAMILIES)
def test_magnitude_prunes_half_of_every_matrix_of_the_file(kind, tmp_path):
    source = written(kind, tmp_path / "m")
    found = prune_folder(str(source), "magnitude", tmp_path / "o", sparsity=0.5)
    after = matrices(tmp_path / "o")
    # transformers keeps an expert's gate and up as one matrix; some files hold them apart.
    whole = {}
    for name, tensor in after.items():
        fused = re.sub(r"(experts\.\d+)\.(gate_proj|up_proj|w1|w3)\.", r"\1.gate_up.", name)
        whole.setdefault(fused, []).extend(tensor.reshape(-1, *tensor.shape[-2:]))
    for name, parts in whole.items():
        for matrix in [torch.cat(parts)] if "gate_up." in name else parts:
            zeros = 0 if ROUTER.search(name) else matrix.numel() // 2
            assert int((matrix == 0).sum()) == zeros, name
    total = sum(tensor.numel() for tensor in after.values())
    zeros = sum(int((tensor == 0).sum()) for tensor in after.values())
    assert found.overall == pytest.approx(zeros / total, abs=1e-6)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "jetmoe", "recurrent_gemma"])
def test_the_pruned_folder_has_the_logits_of_masked_weights(kind, tmp_path):
    source = written(kind, tmp_path / "m")
    prune_folder(str(source), "magnitude", tmp_path / "o", pattern=Pattern("2:4"))
    after = tensors(tmp_path / "o")
    plain = type(made(kind)).from_pretrained(source, dtype=torch.float32)
    before = tensors(source)
    kept = {name: before[name] * (tensor != 0) for name, tensor in after.items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in after.items())
    pruned = type(plain).from_pretrained(tmp_path / "o", dtype=torch.float32)
    ours = load_model(tmp_path / "o")
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch()).logits, pruned(**batch()).logits)
    # Along the inputs, whichever way the architecture stores them.
    for target in prunable(ours):
        groups = target.weight.reshape(-1, 4).count_nonzero(dim=1)
        assert int(groups.max()) <= 2, target.name


def test_an_expert_is_scored_by_the_tokens_that_are_routed_to_it(tmp_path):
    source = written("mixtral", tmp_path / "m")
    rows = families.ids(8)
    (tmp_path / "ids.json").write_text(json.dumps(rows))
    prune_folder(
        str(source),
        "wanda",
        tmp_path / "o",
        sparsity=0.5,
        calibration=str(tmp_path / "ids.json"),
        length=24,
    )
    plain = type(made("mixtral")).from_pretrained(source, dtype=torch.float32)
    mlp = plain.model.layers[0].mlp
    taken = {}
    # The first block's experts see states that depend on pruned attention: prune it first.
    after = tensors(tmp_path / "o")
    for name, tensor in after.items():
        if "layers.0.self_attn" in name:
            plain.get_parameter(name).data.copy_(tensor)
    mlp.register_forward_pre_hook(lambda module, args: taken.setdefault("x", args[0].detach()))
    dense = type(plain).from_pretrained(source, dtype=torch.float32)
    dense.model.layers[0].mlp.register_forward_pre_hook(
        lambda module, args: taken.setdefault("dense", args[0].detach())
    )
    with torch.no_grad():
        dense(input_ids=torch.tensor(rows))  # statistics are those of the unpruned block
    x = taken["dense"].reshape(-1, 32)
    weight = dense.model.layers[0].mlp.gate.weight.detach()
    chosen = (x @ weight.T).softmax(-1).topk(2).indices
    stack = dense.model.layers[0].mlp.experts.gate_up_proj.detach()
    w1 = {n: t for n, t in after.items() if "layers.0" in n and ".w1." in n}
    w3 = {n: t for n, t in after.items() if "layers.0" in n and ".w3." in n}
    for expert in range(4):
        mine = x[(chosen == expert).any(dim=1)]
        scores = stack[expert].abs() * mine.norm(dim=0)
        wanted = scores >= scores.kthvalue(16, dim=1, keepdim=True).values.nextafter(
            torch.tensor(torch.inf)
        )
        got = torch.cat(
            [next(t for n, t in w.items() if f"experts.{expert}." in n) for w in (w1, w3)]
        )
        assert torch.equal(got != 0, wanted), expert


def test_padding_does_not_reach_an_experts_statistic():
    ids = torch.tensor(families.ids(4))
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[3, 4:] = 0
    alone = [{"input_ids": row[m.bool()][None]} for row, m in zip(ids, mask, strict=True)]
    found = []
    for data in ([{"input_ids": ids, "attention_mask": mask}], *([batch] for batch in alone)):
        model = made("mixtral")
        unstack(model)
        squares = {}
        blockwise.walk(
            model,
            context(model, data),
            ColumnNorms,
            lambda inside, stats, squares=squares: squares.update(
                {t.name: stats[t.name].squares for t in inside if "layers.0.mlp" in t.name}
            ),
            {"forward_s": 0.0, "prune_s": 0.0},
            prunes=False,
        )
        found.append(squares)
    padded, *alone = found
    assert padded
    for name, squares in padded.items():
        torch.testing.assert_close(squares, sum(one[name] for one in alone if name in one))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_packed_experts_come_back_bit_for_bit(kind, tmp_path):
    source = written(kind, tmp_path / "m")
    prune_folder(str(source), "magnitude", tmp_path / "o", pattern=Pattern("2:4"))
    report = export(str(tmp_path / "o"), "nm-packed", tmp_path / "p")
    assert set(report.layouts) == {"nm-packed"}
    unpack_folder(tmp_path / "p", tmp_path / "u")
    first, second = tensors(tmp_path / "o"), tensors(tmp_path / "u")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = load_folder(tmp_path / "p")
    assert not [p for p in model.parameters() if p.ndim == 3]


def test_only_the_experts_that_a_token_meets_are_multiplied(tmp_path):
    source = written("mixtral", tmp_path / "m")
    report = cost_report(str(source), ["magnitude"], length=128)
    attention, expert, router = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 64, 4 * 32
    met = 3 * (attention + 2 * expert)
    dense = met + 3 * router + 3 * 2 * 128 * 32 + 32 * 261
    row = next(line for line in report.splitlines() if line.startswith("magnitude")).split()
    assert f"{dense / 1000:.2f}k" in row
    assert f"{(dense - met // 2) / 1000:.2f}k" in row
    assert f"{3 * (attention + 4 * expert):,} of them prunable" in report


def test_routers_stay_dense_and_are_counted():
    model = made("mixtral")
    unstack(model)
    routers = 3 * 4 * 32
    assert block_elements(model) == sum(t.stored.numel() for t in prunable(model)) + routers


def test_a_stacked_model_that_nobody_unstacked_is_refused():
    with pytest.raises(BenchError, match=r"experts\.gate_up_proj \(4, 128, 32\)"):
        prunable(made("mixtral"))


def test_an_unknown_stack_is_refused_by_name():
    model = made("mixtral")
    unstack(model)
    model.model.layers[1].extra = torch.nn.Module()
    model.model.layers[1].extra.weight = torch.nn.Parameter(torch.ones(2, 3, 4))
    with pytest.raises(BenchError, match=r"layers\.1\.extra\.weight \(2, 3, 4\)"):
        prunable(model)


def test_stacking_keeps_the_modules_that_methods_hold():
    model = made("gpt_oss")
    unstack(model)
    before = {t.name: (t.module, t.weight.clone()) for t in prunable(model)}
    with stacked(model):
        assert [p for p in model.parameters() if p.ndim == 3]
    for target in prunable(model):
        module, weight = before[target.name]
        assert target.module is module
        assert torch.equal(target.weight, weight)
