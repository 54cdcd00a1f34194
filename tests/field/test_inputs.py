"""Inputs that are sparse, rounded or broken before a method sees them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bench.api import BenchError
from bench.core.cell import Cell
from bench.core.pattern import Pattern
from bench.costs.contract import check_contract
from bench.costs.parameters import count_sparsity
from bench.sources import catalog
from bench.sources.loading import load_model
from bench.training.cell_trainer import CellTrainer
from bench.weights import finite, targets
from bench.weights.zeros_before import ZerosBefore
from methods import magnitude, sparsegpt
from methods.shared import obs
from tests import helpers
from tests.field import families
from tests.field.test_calibration import prune
from tests.methods.test_blockwise import context

ONE_SHOT = {n: kind for n, kind in helpers.TRAINING_FREE.items() if "unstructured" in kind.patterns}
N_M = [name for name, kind in ONE_SHOT.items() if "N:M" in kind.patterns]
TINY = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": families.GPT2,
    "bert": {"head": "MaskedLM"},
}


def unstructured(weight, share=0.7):
    k = int(weight.numel() * share)
    return weight.masked_fill(weight.abs() <= weight.abs().flatten().kthvalue(k).values, 0.0)


def zero_rows(weight):
    weight = weight.clone()
    weight[: int(0.31 * len(weight))] = 0.0
    return weight


def rounded(weight, bits):
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


MADE = {
    "70 % zeros": unstructured,
    "31 % zero rows": zero_rows,
    "int8": lambda weight: rounded(weight, 8),
    "int4": lambda weight: rounded(weight, 4),
}


def make(change, kind="llama", seed=0):
    model = families.build(kind, seed=seed, **TINY[kind])
    for target in targets.prunable(model):
        target.write(change(target.weight))
    return model


def save(folder, change, kind="llama"):
    families.save(folder, kind, **TINY[kind])
    make(change, kind).save_pretrained(folder)
    return folder


def ids():
    return torch.tensor(families.ids())


def attach(method, model, **cell):
    ctx = context(model, [{"input_ids": ids()}], **cell)
    made = ONE_SHOT[method]()
    before = ZerosBefore(ctx.targets)
    made.attach(model, ctx)
    found = count_sparsity(model, ctx.cell.pattern, before)
    check_contract(
        Cell(
            task="t", model="m", method=method, pattern=ctx.cell.pattern, sparsity=ctx.cell.sparsity
        ),
        made,
        found,
        model,
        before,
    )
    return found


@pytest.mark.parametrize("kind", list(TINY))
@pytest.mark.parametrize("method", list(ONE_SHOT))
@pytest.mark.parametrize("made", list(MADE))
def test_zeros_stay_and_the_contract_holds(method, made, kind):
    model = make(MADE[made], kind)
    zeros = {t.name: t.weight == 0 for t in targets.prunable(model)}
    before = sum(int(z.sum()) for z in zeros.values()) / sum(z.numel() for z in zeros.values())
    sparsity = 0.75 if before > 0.5 else 0.5
    found = attach(method, model, sparsity=sparsity)
    for target in targets.prunable(model):
        assert bool((target.weight[zeros[target.name]] == 0).all()), target.name
    assert found.before == (before or None)
    assert found.overall >= sparsity - 0.01
    if made != "31 % zero rows":
        # Only where a group is sparser than what is asked may there be more.
        # Where levels differ, a block that is asked for less than the mean keeps its zeros.
        spread = 0.02 if ONE_SHOT[method].uniform else 0.1
        assert found.overall == pytest.approx(sparsity, abs=spread)


@pytest.mark.parametrize("method", N_M)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_n_m_counts_the_zeros_that_are_there(method, pattern):
    model = make(unstructured)
    parsed = Pattern(pattern)
    kept, group = parsed.n_m
    old = {t.name: (t.weight == 0).view(-1, group).sum(1) for t in targets.prunable(model)}
    attach(method, model, sparsity=1 - kept / group, pattern=pattern)
    for target in targets.prunable(model):
        now = (target.weight == 0).view(-1, group).sum(1)
        assert torch.equal(now, old[target.name].clamp(min=group - kept)), target.name


def test_a_method_that_makes_too_many_zeros_is_still_found():
    """Zeros that were there excuse only themselves."""
    model = make(unstructured)
    ctx = context(model, [], sparsity=0.75)
    before = ZerosBefore(ctx.targets)
    assert before.zeros == sum(int((t.weight == 0).sum()) for t in ctx.targets)
    for target in ctx.targets:  # 75 % elsewhere: the old zeros are filled
        weight = torch.rand(target.shape) + 0.1
        weight.view(-1)[(target.weight != 0).view(-1).nonzero()[:, 0]] = 0.0
        target.write(weight)
    assert before.kept(ctx.targets) == 0
    cell = Cell(task="t", model="m", method="magnitude", pattern="unstructured", sparsity=0.1)
    found = count_sparsity(model, cell.pattern, before)
    with pytest.raises(BenchError, match=r"counted sparsity 0.30\d+, promised 0.1"):
        check_contract(cell, magnitude.Magnitude(), found, model, before)


def published(weight, hessian, k, n_m):
    """The paper's loop over columns, where weights that are 0 from the start go first."""
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    absent, weight = weight == 0, weight.clone()
    width = weight.shape[1]
    group = 4 if n_m else width
    gone = torch.zeros_like(absent)
    for j in range(width):
        if j % group == 0:
            part = slice(j, j + group)
            scores = (weight[:, part] / upper.diagonal()[part]) ** 2
            scores[absent[:, part]] = -1.0
            chosen = gone[:, part].clone()
            if n_m:
                chosen.scatter_(1, scores.topk(2, dim=1, largest=False).indices, True)
            else:
                chosen.view(-1)[scores.flatten().topk(k, largest=False).indices] = True
            gone[:, part] = chosen | absent[:, part]
        error = torch.where(gone[:, j], weight[:, j], 0.0) / upper[j, j]
        weight[:, j:] -= error[:, None] * upper[j, j:]
        weight[gone[:, j], j] = 0.0
    return weight


@pytest.mark.parametrize("n_m", [False, True])
@pytest.mark.parametrize("absent", [0.0, 0.3, 0.6])
def test_sparsegpt_preserves_the_mask_as_the_published_loop_would(absent, n_m):
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 32, generator=g).double()
    inputs[:, 8:] += inputs[:, :-8]
    weight = torch.randn(24, 32, generator=g).double()
    weight[torch.rand(24, 32, generator=g) < absent] = 0.0
    gram = inputs.t() @ inputs
    k = 24 * 16
    select, group = (obs.n_of_m(2), 4) if n_m else (obs.exactly(k, 32), 128)
    ours = obs.sweep(weight, obs.factorise(gram.clone(), 0.0), select, group, 128)
    naive = published(weight, gram, k, n_m)
    assert torch.equal(ours == 0, naive == 0)
    assert torch.allclose(ours, naive, atol=1e-9)
    assert bool((ours[weight == 0] == 0).all())


@pytest.mark.parametrize("method", ["random", "magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("flags", [("--pattern", "2:4"), ("--sparsity", "0.75")])
def test_prune_says_both_sparsities(method, flags, tmp_path, capsys):
    folder = save(tmp_path / "m", unstructured)
    given = count_sparsity(load_model(folder), Pattern("unstructured")).overall
    code, out, err = prune(capsys, folder, tmp_path / "o", method, *flags)
    assert code == 0, err
    after = count_sparsity(load_model(tmp_path / "o"), Pattern("unstructured")).overall
    line = f"sparsity {after:.4f} of all matrices in the blocks ({given:.4f} before)"
    assert line in out


@pytest.mark.parametrize("method", list(ONE_SHOT))
@pytest.mark.parametrize(("made", "asked"), [("70 % zeros", 0.5), ("int4", 0.05), ("int4", 0.1)])
def test_a_sparser_input_than_asked_for_is_one_line(method, made, asked, tmp_path, capsys):
    folder = save(tmp_path / "m", MADE[made])
    share = count_sparsity(load_model(folder), Pattern("unstructured")).overall
    flags = ("--sparsity", str(asked))
    code, out, err = prune(capsys, folder, tmp_path / "o", method, *flags)
    if share > asked:
        line = f"{folder} is {100 * share:.2f} % sparse already; ask for a sparsity above that"
        assert (code, out) == (2, "")
        assert line in err
        assert err.count("\n") == 1
        assert not (tmp_path / "o").exists()
    else:
        assert code == 0, err


BROKEN = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@pytest.mark.parametrize("value", list(BROKEN))
@pytest.mark.parametrize("method", list(helpers.TRAINING_FREE))
def test_broken_weights_are_named_before(method, value, tmp_path, capsys):
    folder = families.save(tmp_path / "m", "llama", **TINY["llama"])
    model = load_model(folder)
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = BROKEN[value]
    model.save_pretrained(folder)
    code, _, err = prune(capsys, folder, tmp_path / "o", method, "--sparsity", "0.5")
    assert code == 2
    line = "model.layers.1.mlp.down_proj.weight: 1 of 2048 numbers are NaN or infinite"
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def overflowing(place):
    """A model with finite weights whose products are not: 10²⁰ twice is beyond float32."""
    folder = families.save(place, "llama", **TINY["llama"])
    model = load_model(folder)
    for name in ("gate_proj", "up_proj"):
        getattr(model.model.layers[1].mlp, name).weight.data.mul_(1e25)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", list(helpers.CALIBRATED))
def test_inputs_that_are_not_finite_are_named(method, tmp_path, capsys):
    folder = overflowing(tmp_path / "m")
    code, _, err = prune(capsys, folder, tmp_path / "o", method, "--sparsity", "0.5")
    assert code == 2
    assert "the calibration inputs of model.layers.1.mlp.down_proj are not finite" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["random", "magnitude"])
def test_outputs_that_are_not_finite_are_named(method, tmp_path, capsys):
    folder = overflowing(tmp_path / "m")
    code, _, err = prune(capsys, folder, tmp_path / "o", method, "--sparsity", "0.5")
    assert code == 2
    assert "the outputs of model.layers.1.mlp.down_proj are NaN or infinite" in err


def test_weights_that_leave_the_stored_type_are_named(tmp_path, capsys, monkeypatch):
    """A method that works in float32 may make what float16 cannot hold."""
    folder = tmp_path / "m"
    families.save(folder, "llama", **TINY["llama"])
    load_model(folder).half().save_pretrained(folder)
    original = sparsegpt.SparseGPT.pruned

    def larger(self, weight, statistic, k):
        return original(self, weight, statistic, k) * 1e7

    monkeypatch.setattr(sparsegpt.SparseGPT, "pruned", larger)
    code, _, err = prune(capsys, folder, tmp_path / "o", "sparsegpt", "--sparsity", "0.5")
    assert code == 2
    assert "sparsegpt: model.layers.0.self_attn.q_proj.weight: " in err
    assert "numbers are NaN or infinite" in err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_broken_number_is_found(dtype):
    model = torch.nn.Linear(5, 3).to(dtype)
    finite.check_weights(model, "m")
    for value in BROKEN.values():
        for place in range(15):
            broken = torch.nn.Linear(5, 3).to(dtype)
            broken.weight.data.view(-1)[place] = value
            with pytest.raises(BenchError, match="m: weight: 1 of 15 numbers"):
                finite.check_weights(broken, "m")


@pytest.mark.parametrize("bad", [9, 10, 12])
def test_a_loss_that_breaks_late_is_read_at_the_end(bad, monkeypatch):
    """Accelerators are asked every tenth update; here 12 updates, as on one of them."""
    original, step = CellTrainer.training_step, CellTrainer.stop_at_nan

    def training_step(self, *args, **kwargs):
        self.read_every = 10
        return original(self, *args, **kwargs)

    def stop_at_nan(self, at_once=True):
        if self.losses and self.newest == bad:
            self.losses[-1] = torch.tensor(float("nan"))
        step(self, at_once)

    monkeypatch.setattr(CellTrainer, "training_step", training_step)
    monkeypatch.setattr(CellTrainer, "stop_at_nan", stop_at_nan)
    with pytest.raises(BenchError, match=f"the loss is not finite at step {bad}$"):
        helpers.fit_cell(helpers.cell("dense", sparsity=0.0, **{"budget.steps": 12}))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_files_of_two_prunings_hold_the_zeros_of_both(kind, tmp_path, capsys):
    folder = families.save(tmp_path / "m", kind, **TINY[kind])
    for source, out, sparsity in ((folder, "a", "0.3"), (tmp_path / "a", "b", "0.6")):
        flags = ("--sparsity", sparsity)
        code, _, err = prune(capsys, source, tmp_path / out, "wanda", *flags)
        assert code == 0, err
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert bool((second[name][tensor == 0] == 0).all()), name
    assert json.loads((tmp_path / "b" / "config.json").read_text())


def local(folder, change=None, pad=None):
    """A folder of BERT with its tokenizer, for cells."""
    from bench.sources.tiny_models import tiny_tokenizer

    families.save(folder, "bert", head="MaskedLM")
    if change:
        make(change, "bert").save_pretrained(folder)
    if pad:
        tok = tiny_tokenizer("bert")
        tok.add_special_tokens({"pad_token": pad})
        tok.save_pretrained(folder)
    return catalog.adopt(str(folder))


def test_a_cell_refuses_a_tokenizer_of_another_model(tmp_path):
    cell = helpers.cell("dense", model=local(tmp_path / "m", pad="[NEW]"), **{"budget.steps": 2})
    line = r"the tokenizer knows '\[NEW\]' as id 261, the model knows 0 to 260"
    with pytest.raises(BenchError, match=line):
        helpers.fit_cell(cell)


def test_a_cell_refuses_broken_weights_before_it_trains(tmp_path):
    def broken(weight):
        return weight.index_put((torch.tensor([0]), torch.tensor([0])), torch.tensor(torch.nan))

    cell = helpers.cell("dense", model=local(tmp_path / "m", broken), **{"budget.steps": 2})
    phases = []
    with pytest.raises(BenchError, match="query.weight: 1 of 1024 numbers are NaN or infinite"):
        helpers.fit_cell(cell, lambda phase, *_: phases.append(phase))
    assert "train" not in phases


def test_records_say_what_a_method_was_given(tmp_path):
    model = local(tmp_path / "m", unstructured)
    share = count_sparsity(load_model(tmp_path / "m"), Pattern("unstructured")).overall
    dense = helpers.run_cell(helpers.cell("dense", model=model, **{"budget.steps": 2}))
    assert dense.sparsity.before == pytest.approx(share, abs=1e-6)
    assert dense.sparsity.overall < share  # it trains them, too
    tiny = helpers.run_cell(helpers.cell("dense", **{"budget.steps": 2}))
    assert tiny.sparsity.before is None
