"""Cases 13 and 14: what is sliced computes the same, or is refused and nothing is written."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.api import BenchError
from bench.cli import main
from bench.core.pattern import Pattern
from bench.costs import deployed
from bench.costs.macs import count_macs
from bench.export import export
from bench.sources import loading
from bench.weights import slicing
from tests.field import families

IDS = torch.tensor([[7, 50, 9, 200, 31, 5]])
FAMILIES = {
    "bert": ("MaskedLM", {}),
    "gpt2": ("CausalLM", families.GPT2),
    "llama": ("CausalLM", {"num_key_value_heads": 2}),
    "stablelm": ("CausalLM", {"num_key_value_heads": 2}),
    "xglm": (
        "CausalLM",
        dict.fromkeys(families.OWN)
        | {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4},
    ),
    "biogpt": ("CausalLM", {}),
    "olmo2": ("CausalLM", {"num_key_value_heads": 2}),
    "cohere": ("CausalLM", {"num_key_value_heads": 2, "use_qk_norm": True}),
    "diffllama": ("CausalLM", {"num_key_value_heads": 2}),
    "longformer": ("MaskedLM", {"attention_window": 8, "max_position_embeddings": 64}),
    "bitnet": ("CausalLM", {"num_key_value_heads": 2}),
}
REFUSED_HEADS = {"olmo2", "cohere", "diffllama", "longformer", "bitnet"}
REFUSED_NEURONS = {"bitnet"}  # it norms all neurons of a block together


def made(kind, **more):
    head, own = FAMILIES[kind]
    model = families.build(kind, head, **own | more)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p.mul_(8)  # attention that tells heads apart
            elif name.endswith("bias"):
                p.normal_(0.0, 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def kill(model, heads=(), neurons=()):
    """Zeroes the columns that read the given units of the second block."""
    for units, lost in zip(slicing.units(model)[1], (heads, neurons), strict=True):
        weight = units.columns.weight.clone()
        weight[:, units.indices(list(lost), units.width)] = 0.0
        units.columns.write(weight)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dead", [{}, {"heads": [1]}, {"neurons": range(5, 14)}], ids=repr)
def test_a_slice_computes_the_same_or_is_refused(kind, dead, tmp_path):
    model = made(kind)
    kill(model, **dead)
    model.save_pretrained(tmp_path / "m")
    expected, out = logits(model), tmp_path / "o"
    refused = ("heads" in dead and kind in REFUSED_HEADS) or (
        "neurons" in dead and kind in REFUSED_NEURONS
    )
    if refused:
        with pytest.raises(BenchError, match=f"{type(model).__name__} cannot be sliced"):
            export.export(str(tmp_path / "m"), "hf", out, sliced=True)
        assert not out.exists()
        return
    export.export(str(tmp_path / "m"), "hf", out, sliced=True)
    again = loading.load_model(out)
    scale = expected.abs().max()
    assert float((logits(again) - expected).abs().max()) <= 1e-4 * scale
    sizes = [(h.count, n.count) for h, n in slicing.units(again)]
    whole = [(h.count, n.count) for h, n in slicing.units(model)]
    gone = len(dead.get("heads", ())), len(dead.get("neurons", ())) // 8 * 8
    assert sizes[1] == (whole[1][0] - gone[0], whole[1][1] - gone[1])
    assert (sizes[0], sizes[2]) == (whole[0], whole[2])


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_cannot_be_sliced_is_measured_whole(kind):
    model = made(kind)
    kill(model, [1], [3])
    expected, macs = logits(model), count_macs(model, 6, Pattern("heads+neurons"))
    assert (macs.realizable == macs.dense) == (kind in REFUSED_HEADS)
    form = deployed.slice_dead_units(model)
    assert (form == deployed.DENSE) == (kind in REFUSED_HEADS)
    moved = (logits(model) - expected).abs().max() / expected.abs().max()
    assert float(moved) <= 1e-4


def old_names(folder):
    """Renames norms as checkpoints from before PyTorch do."""
    file = folder / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        if "LayerNorm" in name:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[name] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
    return set(renamed)


OLD = {
    "bert": "MaskedLM",
    "roberta": "MaskedLM",
    "esm": "MaskedLM",
    "electra": "MaskedLM",
}


@pytest.mark.parametrize("kind", OLD)
def test_old_names_of_norms_are_sliced_and_loaded(kind, tmp_path, capsys):
    model = families.build(kind, OLD[kind])
    kill(model, [1], [3])
    model.save_pretrained(tmp_path / "m")
    names = old_names(tmp_path / "m")
    assert any(name.endswith("LayerNorm.gamma") for name in names)
    code = main.main(
        ("export", str(tmp_path / "m"), "--format", "hf", "--slice", "--out", str(tmp_path / "s"))
    )
    assert (code, capsys.readouterr().err) == (0, "")
    assert load_file(tmp_path / "s" / "model.safetensors").keys() == names
    again = loading.load_model(tmp_path / "s")
    moved = (logits(again) - logits(model)).abs().max() / logits(model).abs().max()
    assert float(moved) <= 1e-4
    assert main.main(("load", str(tmp_path / "s"))) == 0
    assert slicing.units(again)[1][0].count == 3


def test_a_refused_slice_leaves_the_model_as_it_was():
    model = made("olmo2")
    kill(model, [1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BenchError, match="Olmo2ForCausalLM cannot be sliced"):
        slicing.slice_units(model)
    assert not hasattr(model.config, "sliced")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_heads_with_convolutions_are_refused_by_name(tmp_path):
    families.save(tmp_path / "m", "convbert", "MaskedLM", embedding_size=32, head_ratio=2)
    with pytest.raises(BenchError, match="ConvBertForMaskedLM.*not supported"):
        export.export(str(tmp_path / "m"), "hf", tmp_path / "o", sliced=True)
    assert not (tmp_path / "o").exists()
