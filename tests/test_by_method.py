"""What methods cost, against the papers' numbers and closed forms; nothing is fetched.

Products are counted in two blocks of BERT-base: L blocks of width d with an FFN of 4d, T tokens,
B sequences an update. Elements are counted in whole models.
"""

from functools import cache

import pytest
import torch
from transformers import AutoConfig

from bench.api import BenchError, Budget
from bench.cli import main
from bench.core.pattern import UNSTRUCTURED, Pattern
from bench.core.record import parse
from bench.core.record_parts import Trainable
from bench.costs import by_method, without_weights
from bench.costs.macs import count_macs
from bench.costs.parameters import compared, count_trainable
from bench.costs.products import forward_macs
from bench.engine.prepare import prepare
from bench.planning.job import Job
from bench.planning.setups import setups
from bench.sources.architectures import class_of, config_of, empty
from bench.weights import dead, slicing, targets
from bench.weights.patterns import has_kernel
from tests import helpers
from tests.helpers import fit_cell, run_cell

L, d, T, B = 2, 768, 128, 32
P = 12 * L * d * d  # prunable
FORWARD = L * T * (12 * d * d + 2 * T * d) + d * d + 2 * d  # blocks, pooler, classifier

TOTAL = {  # Llama-2-7B: 32 blocks, 2·32000·4096 in embeddings and head, norms
    "bert-base": (109_483_778, 84_934_656),
    "roberta-base": (124_647_170, 84_934_656),
    "gpt2": (124_439_808, 84_934_656),
    "gpt2-medium": (354_823_168, 301_989_888),
    "llama-2-7b": (
        32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096,
        32 * (4 * 4096**2 + 3 * 4096 * 11008),
    ),
}


@cache
def architecture(name):
    config = config_of(name.removesuffix("/2"))
    if name.endswith("/2"):
        config.num_hidden_layers = 2
    return class_of(config), config


@cache
def row(model, method, pattern=None, sparsity=0.5, kernel=False, batch=B, length=T, **params):
    """A row of the table; equal rows are made once."""
    (setup,) = setups([method], pattern and Pattern(pattern), sparsity, params)
    budget = Budget(steps=100, batch=batch, length=length)
    return by_method.account(setup, budget, *architecture(model), kernel)


def held(model, method, **params):
    """(method, model, trained elements) of an attached method, nothing else counted."""
    (setup,) = setups([method], None, 0.5, params)
    made, cell = setup.method, setup.cell
    budget = Budget(steps=100, batch=1, length=8)
    found = without_weights.attach(made, cell, budget, *architecture(model))
    groups = made.param_groups(found.model) if made.trains else []
    return made, found.model, count_trainable(found.model, groups)


def share(model, method, **params):
    """The paper's trained share beside ours."""
    made, attached, trained = held(model, method, **params)
    targets.merge(attached)
    return compared(attached, trained, made.published)


@pytest.mark.parametrize("name", TOTAL)
def test_shipped_configs_are_the_papers_models_and_take_no_memory(name):
    model = empty(*architecture(name))
    sizes = [t.shape[0] * t.shape[1] for t in targets.prunable(model)]
    assert (sum(p.numel() for p in model.parameters()), sum(sizes)) == TOTAL[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("model", "method", "params", "body"),
    [
        ("bert-base", "dense", {}, 109_482_240),
        ("bert-base", "lora", {}, 294_912),
        ("bert-base", "lora", {"rank": 16}, 589_824),
        ("gpt2-medium", "lora", {"rank": 4}, 393_216),
        ("bert-base", "movement", {}, 194_418_434 - 1_538),
        ("bert-base", "movement", {"freeze_embeddings": True}, 170_581_250 - 1_538),
        ("bert-base", "l0", {}, 194_418_434 - 1_538),
        ("bert-base", "pst", {}, 2_820_096),
        ("gpt2", "pst", {}, 2_820_096),
        ("gpt2", "pst", {"split_qkv": False}, 2_506_752),
        ("gpt2-medium", "pst", {}, 7_520_256),
        ("bert-base", "dsee", {"support": 16}, 590_208),
        ("bert-base", "dsee", {}, 591_360),
        ("bert-base", "dsee", {"support": 128}, 592_896),
        ("gpt2", "ast", {}, 124_439_808),
        ("gpt2", "ast", {"slorb": "mean"}, 138_153_216),
        ("bert-base", "rosa", {}, 1_581_864),
        ("bert-base", "rosa", {"density": 0.006, "rank": 16}, 3_163_752),
        ("bert-base", "losparse", {}, 113_815_298 - 1_538),
        ("bert-base", "platon", {}, 109_482_240),
        ("bert-base", "sparsegpt", {}, 0),
        # q and v of 32 layers: r·(o + i) + N; 7 matrices a layer: (r₁ + r₂ + 1)·(o + i).
        ("llama-2-7b", "dsee", {}, 32 * 2 * (16 * 8192 + 64)),
        ("llama-2-7b", "pst", {}, 32 * 17 * (4 * 8192 + 3 * (4096 + 11008))),
    ],
)
def test_trained_elements_are_those_of_the_papers(model, method, params, body):
    heads = {"bert-base": 0 if method == "sparsegpt" else 1_538}
    _, _, found = held(model, method, **params)
    assert found == Trainable(body=body, head=heads.get(model, 0))


@pytest.mark.parametrize(
    ("model", "method", "params", "printed", "denominator", "digits"),
    [
        ("bert-base", "pst", {}, "1.5", 194_418_434, 1),  # the abstract's number
        ("bert-base", "dsee", {"support": 16}, "0.5", 109_483_778, 1),
        ("bert-base", "dsee", {}, "0.5", 109_483_778, 1),
        ("roberta-base", "lora", {}, "0.64", 124_647_170, None),
        ("gpt2", "ast", {}, "100.0", 124_439_808, 1),
        ("bert-base", "wanda", {}, "0.0", 109_483_778, 1),
    ],
)
def test_a_published_share_stands_beside_ours_of_its_denominator(
    model, method, params, printed, denominator, digits
):
    found = share(model, method, **params)
    assert f"{100 * found.share:.3g}" == f"{float(printed):.3g}"
    assert found.denominator == denominator
    if digits is not None:
        assert f"{100 * found.ours:.{digits}f}" == printed


def test_published_shares_count_the_head_where_the_paper_does():
    assert share("bert-base", "pst").ours == 2_820_096 / 194_418_434
    # Printed as 0.8M: 592,130 of them are the head.
    assert share("roberta-base", "lora").ours == 887_042 / 124_647_170
    assert row("bert-base/2", "pst").published == share("bert-base/2", "pst")
    assert row("bert-base/2", "dense").published is None


def test_a_branch_is_no_part_of_the_denominator():
    found = share("gpt2", "ast", slorb="mean")
    assert found.denominator == 124_439_808
    assert found.ours == 138_153_216 / 124_439_808


def test_dense_macs_are_the_closed_form_and_training_takes_three_forwards():
    whole = row("bert-base", "wanda").dense
    assert whole - d * d - 2 * d == 11_173_625_856  # 11.174 G
    found = row("bert-base/2", "dense")
    assert found.dense == found.effective == found.realizable == FORWARD
    assert found.train == 3 * FORWARD


def test_frozen_embeddings_spare_the_first_blocks_input_gradients():
    found = row("bert-base/2", "movement", freeze_embeddings=True)
    assert found.train == 3 * FORWARD - T * 3 * d * d


def test_a_teacher_costs_one_forward_more():
    assert row("bert-base/2", "ast").train == 4 * FORWARD
    assert row("bert-base/2", "ast", kd=0.0).train == 3 * FORWARD


def test_lora_needs_the_weight_gradients_of_query_and_value_only():
    r, qv = 8, 2 * L
    inputs = T * P - T * 3 * d * d  # nothing trains below the first block
    # k of the first block needs no gradient: its input has none and it is frozen.
    attention = 4 * L * T * T * d - T * T * d
    head = d * d + 4 * d  # input of pooler and classifier, weight of the classifier
    weights = qv * T * d * d
    update = qv * 3 * r * d * d  # BA, and its gradients; once for all sequences
    expected = FORWARD + inputs + attention + head + weights
    assert row("bert-base/2", "lora").train == expected + update // B
    # DSEE updates the same two with rank 16, and N numbers without products.
    assert row("bert-base/2", "dsee").train == expected + 2 * update // B


def test_pst_needs_every_weight_gradient_and_its_low_rank_products():
    inputs = T * P - T * 3 * d * d
    attention, head, weights = 4 * L * T * T * d, d * d + 4 * d, T * P
    # UV and [α₁A, α₂R, 1]·[B; 1; α₂C], forward and twice backward (methods/pst.py).
    update = 3 * (8 + 10) * P
    expected = FORWARD + inputs + attention + head + weights
    assert row("bert-base/2", "pst").train == expected + update // B


def test_a_small_batch_pays_more_for_products_of_weights():
    many, one = row("tiny-bert", "pst", length=16), row("tiny-bert", "pst", length=16, batch=1)
    assert one.train - many.train == 3 * 18 * 65_536 * (B - 1) // B


def test_losparse_pays_for_its_branches():
    rank = {768: 20, 3072: 31}  #
    branches = T * L * (4 * rank[768] * 2 * d + 2 * rank[3072] * 5 * d)
    found = row("bert-base/2", "losparse")
    assert found.dense == found.realizable == FORWARD + branches
    assert found.train == 3 * (FORWARD + branches)
    # Its sparsity says what is left, L and R included.
    assert found.effective == pytest.approx(FORWARD - T * P / 2, rel=1e-6)


def test_slorb_adds_its_branch_to_every_forward():
    q, x = 5_308_416 * L // 12, 9_289_728 * L // 12  # of BERT-base
    found = row("bert-base/2", "ast", slorb="mean", kernel=True)
    assert found.dense == FORWARD + T * (q + x)
    assert found.effective == found.realizable == FORWARD + T * (q + x) - T * P // 2
    assert found.train == 3 * found.dense + FORWARD


def test_effective_macs_and_stored_elements_are_what_the_method_promises():
    found = row("bert-base", "magnitude", sparsity=0.9)
    assert found.stored == 33_042_626  # PST's
    assert found.effective == found.dense - T * 76_441_152
    assert found.realizable == found.dense
    # DSEE's q and v come out dense: the zeros are those of pool 1 without the pooler
    pool = (71_368_704 - d * d) * L // 12
    found = row("bert-base/2", "dsee")
    assert found.effective == FORWARD - T * pool // 2
    assert found.stored == 109_483_778 - 10 * 85_054_464 // 12 - pool // 2


@pytest.mark.parametrize(("method", "params"), [("l0", {}), ("movement", {"mode": "soft"})])
def test_what_training_decides_is_left_out(method, params):
    found = row("tiny-bert", method, batch=1, length=8, **params)
    assert (found.stored, found.effective, found.realizable) == (None, None, None)
    assert found.train > 0


def test_a_target_settles_the_zeros_but_not_how_many_are_neurons():
    more = {"batch": 1, "length": 8, "mode": "soft", "target": "lagrangian"}
    hard = row("tiny-bert", "movement", batch=1, length=8)
    made = row("tiny-bert", "movement", **more)
    assert (made.stored, made.effective) == (hard.stored, hard.effective)
    assert made.train == hard.train
    assert row("tiny-bert", "movement", "block:16x16+neurons", **more).stored is None


def test_unstructured_is_realized_as_dense_and_2_4_only_where_there_is_a_kernel():
    half = FORWARD - T * P // 2
    assert row("bert-base/2", "magnitude", "2:4").effective == half
    assert row("bert-base/2", "magnitude", "2:4").realizable == FORWARD
    assert row("bert-base/2", "magnitude", "2:4", kernel=True).realizable == half
    assert row("bert-base/2", "magnitude", "4:8", kernel=True).realizable == FORWARD
    assert row("bert-base/2", "magnitude", kernel=True).realizable == FORWARD
    assert not has_kernel(torch.device("cpu"))


def test_removed_heads_and_neurons_are_realized_as_sliced():
    # 25 % of the heads and 40 % of the neurons are 35 % of the linear MACs: DSEE v1.
    found = row("bert-base/2", "dsee", "heads+neurons", 0.25, neuron_sparsity=0.4)
    neurons = round(0.4 * 3072)
    linear = L * T * (4 * d * d // 4 + 2 * d * neurons)
    assert linear / (T * P) == pytest.approx(0.35, abs=1e-4)
    assert found.effective == FORWARD - linear
    attention = L * 2 * T * T * d // 4  # q·kᵀ and p·v of the removed heads
    stay = (3072 - neurons + 7) // 8 * 8 - (3072 - neurons)  # a slice keeps a multiple of 8
    assert found.realizable == FORWARD - linear - attention + L * T * 2 * d * stay
    # 25 % of the heads alone: 8.33 %.
    found = row("bert-base/2", "dsee", "heads", 0.25)
    assert (FORWARD - found.effective) / (T * P) == pytest.approx(1 / 12)


def test_state_is_parameters_gradients_and_moments():
    total = 109_483_778 - 10 * 85_054_464 // 12  # ten blocks less
    state = row("bert-base/2", "dense").state_bytes
    buffers = (512 + 512) * 8  # position and type ids
    assert state == 4 * 4 * total + buffers
    assert row("bert-base/2", "wanda").state_bytes is None
    # PLATON: three tensors a weight beside them.
    platon = row("bert-base/2", "platon").state_bytes
    assert platon == state + 3 * 4 * P


@pytest.mark.parametrize("name", helpers.ARCHITECTURES)
def test_exported_models_realize_sliced_heads_and_halved_matrices(name):
    model, _, ctx = helpers.attached(helpers.cell("dense", name))
    dense = count_macs(model, 20)
    assert dense.realizable == dense.dense
    for heads, neurons in slicing.units(model):
        for units, n in ((heads, 1), (neurons, neurons.count // 4)):
            columns = units.indices(range(n), units.width)
            units.columns.write(units.columns.weight.index_fill(1, columns, 0.0))
    sliced = count_macs(model, 20, Pattern("heads+neurons"))
    again = empty(type(model), model.config)
    with torch.device("meta"):
        dead.take_shares(again, 1 / slicing.units(again)[0][0].count, 1 / 4, 0.0)
    assert sliced.dense == dense.dense
    assert sliced.realizable == forward_macs(again, 20)[""] < sliced.effective
    assert count_macs(model, 20).realizable == dense.dense
    linear = 20 * sum(t.shape[0] * t.shape[1] for t in ctx.targets)
    kernel = count_macs(model, 20, Pattern("2:4"), kernel=True)
    assert dense.dense - kernel.realizable == linear // 2


@pytest.mark.parametrize(
    ("method", "slack"),  # a row more: the widest has 256 weights
    [("magnitude", 0), ("platon", 0), ("pst", 0), ("movement", 0), ("dsee", 0), ("losparse", 255)],
)
def test_what_is_expected_is_what_comes_out(method, slack):
    cell = helpers.cell(method, "tiny-gpt2", 0.5, budget__steps=6, budget__batch=4)
    if cell.method == "magnitude":
        model, made, ctx = helpers.attached(cell)
    else:
        fitted = fit_cell(cell, lambda *_: None)
        model = fitted.model
        _, made, ctx = helpers.attached(cell)
    zeros = sum(helpers.zeros(model).values())
    assert 0 <= zeros - made.expected(ctx).zeros <= slack


def test_a_record_has_every_count():
    cell = helpers.cell("pst", "tiny-bert", 0.5, budget__steps=2, budget__batch=4)
    made = run_cell(cell, lambda *_: None)
    length, width, size = made.macs.tokens, 64, 65_536
    forward = made.macs.dense
    attention = 2 * 2 * length * length * width
    linear = length * size
    # As for BERT-base above.
    assert made.macs.train == (
        forward
        + linear
        - length * 3 * width * width
        + 2 * attention
        + width * width
        + 4 * width
        + linear
        + 3 * 18 * size // 4
    )
    assert made.macs.realizable == made.macs.dense
    assert made.params.published.share == 0.015
    assert made.params.published.denominator == made.params.total + size
    assert made.params.published.ours == pytest.approx(
        made.params.trainable.body / (made.params.total + size)
    )
    assert parse(made.to_json(), "here").macs == made.macs


def test_one_shot_methods_train_nothing_and_third_parties_may_need_weights(monkeypatch):
    from methods.pst import PST

    def attach(self, model, ctx):
        float(ctx.targets[0].weight.sum())

    monkeypatch.setattr(PST, "attach", attach)
    with pytest.raises(BenchError, match="pst needs weights to be counted: "):
        held("tiny-bert", "pst")
    text = by_method.cost_report("tiny-bert", pattern=UNSTRUCTURED, batch=1, length=8)
    assert "pst: pst needs weights to be counted" in text
    assert "\nmagnitude " in text
    assert prepare([Job.resolve(helpers.cell("pst"))]) == {}
    assert row("bert-base", "magnitude").train == 0


def test_the_command_prints_every_method(capsys):
    from bench.planning import registry

    assert main.main(["count", "tiny-gpt2", "--length", "16", "--batch", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {line.split(" ")[0] for line in out.splitlines()} >= set(registry.names("method"))
    assert "needs weights" not in out
    assert "1.5% of weights+scores" in out


def test_a_folder_or_a_config_file_can_be_counted(capsys, tmp_path):
    AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    # wte, wpe, 12d² + 13d of the block, ln_f
    total = 50257 * 32 + 1024 * 32 + 12 * 32 * 32 + 13 * 32 + 2 * 32
    for name in (tmp_path, tmp_path / "config.json"):
        assert main.main(["count", str(name), "--method", "dense"]) == 0
        assert f"{total:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "nonsense"}'])
def test_a_broken_config_is_one_line(capsys, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert main.main(["count", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "no usable config" in err
    assert (err.count("\n"), out) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bert-bas"], "unknown model 'bert-bas': did you mean bert-base"),
        (["nobody/nothing"], "cannot reach nobody/nothing"),
        (["bert-base", "--method", "pstt"], "unknown method 'pstt': did you mean pst"),
        (["bert-base", "--sparsity", "1.2"], "sparsity 1.2"),
        (["bert-base", "--method", "pst", "--pattern", "2:4"], "pst makes unstructured, not 2:4"),
        (["bert-base", "--method", "wanda", "--pattern", "2:5"], "not a multiple of 5"),
        (["bert-base", "--pattern", "tower"], "'tower' is not a pattern"),
        (["bert-base", "--method", "pst", "--set", "rnk=4"], "no parameter 'rnk'"),
        (["bert-base", "--length", "600"], "bert-base has positions for 512 tokens"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, line):
    assert main.main(["count", *arguments]) == 2
    out, err = capsys.readouterr()
    assert line in err
    assert err.startswith("sparsebench: ")
    assert err.count("\n") == 1
    assert out == ""
