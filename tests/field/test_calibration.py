"""Calibration on blocks of any shape, against whole-model forward passes with hooks."""

import json
import logging

import numpy as np
import pytest
import torch

from bench.api import BenchError
from bench.cli.main import main
from bench.costs.contract import check_contract
from bench.costs.parameters import count_sparsity
from bench.sources import limits
from bench.sources.loading import load_model
from bench.weights import targets
from methods import alphapruning, magnitude, wanda
from methods.shared import blockwise, passes
from methods.shared.input_statistics import ColumnNorms
from tests import helpers
from tests.field import families
from tests.methods.test_blockwise import context

pytestmark = pytest.mark.usefixtures("float32_passes")

BERT = dict.fromkeys(families.OWN)
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    # A block returns a tuple.
    "deberta": {"head": "MaskedLM", "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "head": "MaskedLM",
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
    },
    # Blocks pass state on: position biases, two streams, a recurrent state.
    "t5": families.T5 | {"head": "Seq2SeqLM"},
    "mt5": families.T5 | {"head": "Seq2SeqLM"},
    "xlnet": BERT | {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
    "rwkv": {"attention_hidden_size": 32, "num_attention_heads": None, "context_length": 128},
    # Two stacks that return tensors; cross-attention.
    "bart": BERT
    | {"head": "Seq2SeqLM", "d_model": 32, "encoder_layers": 3, "decoder_layers": 3}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128}
    | {"decoder_start_token_id": 3},
    # Sequences that the model lengthens to its window.
    "longformer": {"head": "MaskedLM", "attention_window": 16, "max_position_embeddings": 130},
}


def stacks(model):
    """The blocks of all stacks, by a rule of the test's own."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    found = []
    for each in lists:
        inside = {id(m) for block in found for m in block.modules()}
        found += [block for block in each if id(block) not in inside]
    return found


def linear_inside(model):
    inside = {id(m) for block in stacks(model) for m in block.modules()}
    return [
        targets.Target(name, m)
        for name, m in model.named_modules()
        if id(m) in inside and isinstance(m, torch.nn.Linear)
    ]


def make(kind, monkeypatch):
    monkeypatch.setattr(blockwise, "blocks", stacks)
    model = families.build(kind, **FAMILIES[kind])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def decoder_ids(model, ids):
    return torch.cat([torch.full((len(ids), 1), model.config.decoder_start_token_id), ids], 1)[
        :, :-1
    ]


def call(model, ids):
    more = {}
    if getattr(model.config, "is_encoder_decoder", False):
        more["decoder_input_ids"] = decoder_ids(model, ids)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more)


def naive_squares(model, block, ids):
    """Σ x² of every Linear of a block, from passes of the whole model."""
    squares, handles = {}, []
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):

            def hook(module, args):
                # Longformer fills sequences up to its window.
                x = args[0][:, : ids.shape[1]] if "window" in str(model.config) else args[0]
                x = x.reshape(-1, x.shape[-1])
                squares[module] = squares.get(module, 0) + x.square().sum(0)

            handles.append(module.register_forward_pre_hook(hook))
    call(model, ids)
    for handle in handles:
        handle.remove()
    return squares


def naive_wanda(model, ids):
    """Each block by itself, from whole passes of the model that is pruned so far."""
    for block in stacks(model):
        for module, squares in naive_squares(model, block, ids).items():
            scores = module.weight.detach().abs() * squares.sqrt()
            half = scores.shape[1] // 2
            worst = scores.topk(half, dim=1, largest=False).indices
            module.weight.detach().scatter_(1, worst, 0.0)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_wanda_equals_whole_forward_passes(kind, monkeypatch):
    ids = torch.tensor(families.ids())
    ours, naive = make(kind, monkeypatch), make(kind, monkeypatch)
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    ctx = context(ours, data, matrices=linear_inside(ours))
    method = wanda.Wanda()
    method.attach(ours, ctx)
    naive_wanda(naive, ids)
    # Without global attention its projections are not called.
    assert method.left_dense.keys() == {t.name for t in linear_inside(ours) if "_global" in t.name}
    for a, b in zip(linear_inside(ours), linear_inside(naive), strict=True):
        zeros = 0 if a.name in method.left_dense else a.weight.numel() // 2
        assert int((a.weight == 0).sum()) == zeros, a.name
        differ = ((a.weight != 0) != (b.weight != 0)).float().mean()
        assert differ < 2e-3, a.name  # rounding may swap near ties


@pytest.mark.parametrize("kind", ["deberta-v2", "t5", "xlnet", "bart", "longformer"])
def test_padding_is_left_out(kind, monkeypatch):
    """Ragged sequences give what each of them gives alone."""
    model = make(kind, monkeypatch)
    lengths = (24, 9, 17, 9)
    ids = torch.tensor(families.ids(4))
    mask = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
    data = [{"input_ids": ids * mask, "attention_mask": mask}]
    found = {}
    blockwise.walk(
        model,
        context(model, data, matrices=linear_inside(model)),
        ColumnNorms,
        lambda inside, stats: found.update({t.name: stats[t.name].squares for t in inside}),
        {"forward_s": 0.0, "prune_s": 0.0},
        prunes=False,
    )
    expected = dict.fromkeys(found, 0)
    names = {t.module: t.name for t in linear_inside(model)}
    for row, length in zip(ids, lengths, strict=True):
        for block in stacks(model):
            for module, squares in naive_squares(model, block, row[None, :length]).items():
                expected[names[module]] += squares
    assert len(found) == sum("_global" not in name for name in names.values())
    for name, squares in found.items():
        if "pos_" not in name:  # these see a table of distances, not tokens
            assert torch.allclose(squares, expected[name], rtol=1e-3, atol=1e-6), name


class Shared(torch.nn.Module):
    """A model that calls one block three times, or writes into what a block is given."""

    def __init__(self, times=1, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), {"num_hidden_layers": 2, "use_cache": False})()
        self.embed = torch.nn.Embedding(261, 16)
        self.layers = torch.nn.ModuleList(Block(in_place) for _ in range(2))
        self.times, self.device = times, torch.device("cpu")

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for _ in range(self.times):
            for layer in self.layers:
                x = layer(x)
        return x


class Block(torch.nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.in_place = in_place

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        return x.add_(y) if self.in_place else x + y


def squares_of(model, ids):
    ctx = context(model, [{"input_ids": ids}])
    found = {}

    def visit(inside, stats):
        found.update({t.name: stats[t.name].squares for t in inside})
        for t in inside:
            t.write(t.weight * 0.5)

    blockwise.walk(model, ctx, ColumnNorms, visit, {"forward_s": 0.0, "prune_s": 0.0})
    return found


@pytest.mark.parametrize("model", [{"times": 3}, {"in_place": True}, {}])
def test_blocks_that_cannot_be_run_again_are_walked_by_whole_passes(model, caplog):
    caplog.set_level(logging.INFO)
    ids = torch.tensor(families.ids(4))
    found = squares_of(Shared(**model), ids)
    assert ("cannot be walked block by block" in caplog.text) == bool(model)
    by_hand, names = Shared(**model), {}
    names = {m: n for n, m in by_hand.named_modules()}
    for layer in by_hand.layers:
        squares, handles = {}, []
        for module in (layer.a, layer.b):

            def hook(module, args, squares=squares):
                x = args[0].reshape(-1, 16)
                squares[module] = squares.get(module, 0) + x.square().sum(0)

            handles.append(module.register_forward_pre_hook(hook))
        with torch.no_grad():
            by_hand(ids)
            for module in (layer.a, layer.b):
                module.weight.mul_(0.5)
        for handle in handles:
            handle.remove()
        for module, expected in squares.items():
            assert torch.allclose(found[names[module]], expected, rtol=1e-4), names[module]


def test_a_stopped_pass_gives_the_models_own_outputs():
    """Going from stop to stop changes nothing: the model returns what it returns in one go."""
    model = families.build("t5", **FAMILIES["t5"])
    ids = torch.tensor(families.ids(2))
    batch = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False}
    seen = []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(**batch)
        with passes.stops(stacks(model)) as compute:
            stopped, order = passes.Pass(model, batch), []
            while stopped.call:
                order.append(stopped.call.block)
                block, args, kwargs = stopped.call
                stopped.resume(compute[block](*args, **kwargs))
    assert order == stacks(model)
    assert torch.equal(*seen)
    assert not any("forward" in m.__dict__ for m in model.modules())


CROSS = families.GPT2 | {"add_cross_attention": True}
UNCALLED = {
    "gpt2": (CROSS, "crossattention"),
    "bert": ({"head": "CausalLM", "is_decoder": True, "add_cross_attention": True}, "crossatt"),
    "mamba": (
        {"state_size": 4, "num_attention_heads": None, "intermediate_size": 64, "head": "CausalLM"},
        "dt_proj",
    ),
}


@pytest.mark.parametrize("kind", list(UNCALLED))
@pytest.mark.parametrize("kinds", helpers.CALIBRATED.values())
def test_matrices_that_no_pass_calls_stay_dense_and_are_named(kind, kinds, caplog):
    more, part = UNCALLED[kind]
    model = families.build(kind, **more)
    ids = torch.tensor(families.ids())
    ctx = context(model, [{"input_ids": ids}])
    uncalled = {t.name for t in ctx.targets if part in t.name}
    before = {t.name: t.weight.clone() for t in ctx.targets}
    method = kinds()
    method.attach(model, ctx)
    assert method.left_dense.keys() == uncalled
    assert method.report["left_dense"] == len(uncalled)
    assert f"{len(uncalled)} (" in caplog.text
    assert sorted(uncalled)[0] in caplog.text
    zeros = {t.name: int((t.weight == 0).sum()) for t in ctx.targets}
    for t in ctx.targets:
        if t.name in uncalled:
            assert torch.equal(t.weight, before[t.name])
    rest = sum(t.weight.numel() for t in ctx.targets if t.name not in uncalled)
    assert sum(zeros.values()) == pytest.approx(rest / 2, abs=len(zeros))


def test_what_is_left_dense_in_a_sparser_block_is_missed_more():
    """Blocks have their own sparsities, and only one of them holds matrices without inputs."""
    model = families.build("gpt2", **CROSS)
    first = model.transformer.h[0]
    first.crossattention = first.ln_cross_attn = torch.nn.Identity()
    ctx = context(model, [{"input_ids": torch.tensor(families.ids())}])
    method = alphapruning.AlphaPruning()
    method.attach(model, ctx)
    sparsity = count_sparsity(model, ctx.cell.pattern)
    check_contract(ctx.cell, method, sparsity, model)
    sizes = {t.name: t.weight.numel() for t in ctx.targets}
    missed = sum(method.left_dense.values()) / sum(sizes[name] for name in method.left_dense)
    assert missed != pytest.approx(ctx.cell.sparsity, abs=0.01)


@pytest.mark.parametrize("pattern", [("--sparsity", "0.5"), ("--pattern", "2:4")])
def test_prune_counts_what_it_left_dense(pattern, tmp_path, capsys):
    folder = families.save(tmp_path / "m", "gpt2", **CROSS)
    code, _, err = prune(capsys, folder, tmp_path / "o", "wanda", *pattern)
    assert code == 0, err
    written = load_model(tmp_path / "o")
    matrices = targets.prunable(written)
    dense = [t for t in matrices if "crossattention" in t.name]
    assert dense
    assert all(int((t.weight == 0).sum()) == 0 for t in dense)
    rest = sum(t.weight.numel() for t in matrices) - sum(t.weight.numel() for t in dense)
    assert sum(int((t.weight == 0).sum()) for t in matrices) == rest // 2


def prune(capsys, folder, out, method, *more, length="24", rows=None):
    """Runs the command with token ids to calibrate on; returns code, stdout, stderr."""
    file = out.parent / "ids.json"
    file.write_text(json.dumps(families.ids() if rows is None else rows))
    size = ("--length", length) if length else ()
    arguments = ["prune", str(folder), "--method", method, "--out", str(out), *size]
    capsys.readouterr()
    code = main([*arguments, "--calibration", str(file), *more])
    found = capsys.readouterr()
    return code, found.out, found.err


ROBERTA = {"head": "MaskedLM", "max_position_embeddings": 130, "pad_token_id": 1}
OFFSET = {
    "roberta": ROBERTA,
    "camembert": ROBERTA,
    "xlm-roberta": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "ibert": ROBERTA,
    "mpnet": ROBERTA,
    "longformer": ROBERTA | {"attention_window": 16},
    "luke": ROBERTA | {"entity_vocab_size": 20, "entity_emb_size": 32},
}


@pytest.mark.parametrize("kind", list(OFFSET))
def test_positions_after_the_padding_are_what_the_model_can_take(kind):
    model = families.build(kind, **OFFSET[kind])
    assert limits.positions(model.config, 512) == 128
    ids = torch.tensor([[(5 + i) % 250 + 5 for i in range(128)]])
    with torch.no_grad():
        model(input_ids=ids)
        if kind != "longformer":  # it lengthens sequences to its window
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.cat([ids, ids[:, :1]], 1))


@pytest.mark.parametrize(
    ("kind", "more", "limit"),
    [
        ("bert", {"head": "MaskedLM"}, 128),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64, "intermediate_size": None}, 128),
        ("gpt2", families.GPT2, 128),
        ("t5", families.T5 | {"head": "Seq2SeqLM"}, None),
    ],
)
def test_other_positions_count_as_the_config_says(kind, more, limit):
    config = families.build(kind, **more).config
    assert limits.positions(config, 512) == limits.positions(config, 4) == limit


def test_the_default_length_is_cut_and_a_longer_one_refused(tmp_path, capsys):
    folder = families.save(tmp_path / "m", "roberta", **ROBERTA)
    stream = [i % 250 + 5 for i in range(600)]
    half = ("--sparsity", "0.5")
    code, _, err = prune(capsys, folder, tmp_path / "o", "wanda", *half, length=None, rows=stream)
    assert code == 0, err
    for length in ("129", "130"):
        out = tmp_path / "p"
        code, _, err = prune(capsys, folder, out, "wanda", *half, length=length, rows=stream)
        assert code == 2
        assert err.strip().endswith(f"length {length}: {folder} has positions for 128 tokens")
        assert not (tmp_path / "p").exists()


def test_ids_beyond_the_embedding_are_one_line_for_every_source(tmp_path, capsys):
    folder = families.save(tmp_path / "m", "llama", num_key_value_heads=2)
    np.save(tmp_path / "ids.npy", np.array([[5, 261]]))
    flags = f"--method wanda --sparsity 0.5 --length 2 --out {tmp_path}/o".split()
    code = main(["prune", str(folder), *flags, "--calibration", str(tmp_path / "ids.npy")])
    err = capsys.readouterr().err
    assert code == 2
    assert "token ids from 5 to 261, the model knows 0 to 260" in err


@pytest.mark.parametrize("source", ["tiny/reviews", "text"])
def test_a_smaller_embedding_than_the_tokenizer_is_one_line(source, tmp_path, capsys):
    rows = 20
    folder = families.save(tmp_path / "m", "llama", num_key_value_heads=2, vocab_size=rows)
    if source == "text":
        source = tmp_path / "a.txt"
        source.write_text("w1 w30 w2 " * 20)
    flags = f"--method wanda --sparsity 0.5 --length 8 --calib 4 --out {tmp_path}/o".split()
    code = main(["prune", str(folder), *flags, "--calibration", str(source)])
    err = capsys.readouterr().err
    assert code == 2
    assert f"the model knows 0 to {rows - 1}" in err
    assert err.strip().count("\n") == 0


def test_a_tokenizer_of_another_model_is_refused_before_a_cell_runs():
    model = families.build("llama", num_key_value_heads=2)
    from bench.sources.tiny_models import tiny_tokenizer

    for kind in ("gpt2", "bert"):
        tok = tiny_tokenizer(kind)
        limits.check_tokenizer(tok, model, "m")
        tok.add_special_tokens({"pad_token": "[NEW]"})
        assert tok.pad_token_id >= 261
        with pytest.raises(BenchError, match=r"m: the tokenizer knows '\[NEW\]' as id 26\d"):
            limits.check_tokenizer(tok, model, "m")
        tok = tiny_tokenizer(kind)
        tok.add_tokens(["<never-in-a-text>"])
        limits.check_tokenizer(tok, model, "m")


def test_a_model_that_cannot_run_on_tokens_is_one_line():
    model = Shared()
    model.forward = lambda input_ids, pixels: None
    with pytest.raises(BenchError, match="Shared cannot run on the calibration sequences: TypeErr"):
        wanda.Wanda().attach(model, context(model, [{"input_ids": torch.ones(2, 4).long()}]))


def test_a_sequence_that_a_block_cannot_take_is_one_line():
    """Nystromformer takes sequences of one length only; the first one tells nothing of that."""
    model = families.build("nystromformer", "MaskedLM", num_landmarks=8, segment_means_seq_len=24)
    ids = torch.tensor(families.ids())
    method = wanda.Wanda()
    method.attach(model, context(model, [{"input_ids": ids}]))
    with pytest.raises(BenchError, match="cannot run on the calibration sequences: RuntimeError"):
        method.attach(model, context(model, [{"input_ids": ids}, {"input_ids": ids[:, :21]}]))
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_magnitude_needs_no_pass():
    model = families.build("gpt2", **CROSS)
    method = magnitude.Magnitude()
    method.attach(model, context(model, []))
    assert not method.left_dense
