"""What a cell and `sparsebench latency` measure: the right model, in the right form."""

import copy

import pytest
import torch

from bench.cli.main import main
from bench.costs import deployed, latency, measure
from bench.planning import registry
from bench.weights import side_branch, slicing
from bench.weights.targets import prunable
from tests import helpers
from tests.helpers import run_cell


def tiny(name="tiny-bert"):
    return helpers.load(name, registry.task("tiny/reviews"), 1).model.eval()


def without_units(model, heads=1, neurons=3):
    """The model with the first heads and neurons of every block unread."""
    for groups in slicing.units(model):
        for group, n in zip(groups, (heads, neurons), strict=True):
            weight = group.columns.weight
            weight[:, group.indices(range(n), group.width)] = 0.0
            group.columns.write(weight)
    return model


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama"])
def test_dead_units_are_sliced_and_logits_stay(name):
    model = without_units(tiny(name))
    before = copy.deepcopy(model.state_dict())
    made, form = deployed.deployed(model, torch.float32)
    assert form == deployed.SLICED
    ids = torch.randint(5, 200, (2, 9))
    torch.testing.assert_close(made(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_unstructured_zeros_stay_dense_and_no_kernel_is_claimed_without_cuda():
    model = tiny()
    for target in prunable(model):
        weight = target.weight
        weight[torch.arange(len(weight))[:, None] % 2 == torch.arange(weight.shape[1]) % 2] = 0.0
        target.write(weight)
    made, form = deployed.deployed(model, torch.bfloat16)
    assert form == deployed.DENSE
    assert made.dtype == torch.bfloat16
    assert deployed.use_kernel(made) == ""


def test_models_take_turns():
    order = []

    class Fake:
        device = torch.device("cpu")

        def __init__(self, name):
            self.name = name
            self.config = type("Config", (), {"vocab_size": 50})

        def __call__(self, input_ids, attention_mask):
            assert input_ids.shape == attention_mask.shape == (4, 7)
            order.append(self.name)

    times = measure.latency([Fake("a"), Fake("b")], 4, 7, turns=5, seconds=60.0)
    assert order == ["a", "b"] * (measure.WARMUP + 5)
    assert [len(taken) for taken in times] == [5, 5]
    times = measure.latency([Fake("a")], 4, 7, turns=50, seconds=0.0)
    assert len(times[0]) == 3


def test_percentiles_by_hand():
    assert measure.p50_p95([3.0, 1.0, 2.0]) == pytest.approx((2.0, 2.9))


def test_ratios_are_those_of_one_turn():
    # The load doubles from turn to turn.
    assert measure.paired_quartiles([2.0, 3.0, 8.0], [1.0, 1.5, 4.0]) == (2.0, 2.0, 2.0)
    assert measure.paired_quartiles([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == (2.0, 3.0, 4.0)


def test_a_cell_times_its_deployed_form(monkeypatch):
    monkeypatch.setattr(latency, "CELL_SECONDS", 1e9)  # however slow the machine is just now
    record = run_cell(helpers.cell("dense", budget__steps=1), lambda *_: None)
    assert [(s.batch, s.length, s.form, s.dtype) for s in record.speed] == [
        (1, 20, "dense", "float32"),
        (32, 20, "dense", "float32"),
    ]
    for speed in record.speed:
        assert 0 < speed.ms_p50 <= speed.ms_p95
        assert speed.dense_ms_p50 == speed.ms_p50


def test_sliced_models_and_branches_have_a_dense_twin_without_them():
    for model in (without_units(tiny()), tiny()):
        target = prunable(model)[0]
        out, width = target.shape
        side_branch.add(target.module, torch.zeros(2, width), torch.zeros(out, 2))
        twin = deployed.dense_twin(model, torch.float32)
        shapes = {k: v.shape for k, v in tiny().state_dict().items()}
        assert {k: v.shape for k, v in twin.state_dict().items()} == shapes


def test_the_table_compares_folders_with_the_first(tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "dense")
    without_units(tiny()).save_pretrained(tmp_path / "zeroed")
    folders = [str(tmp_path / name) for name in ("dense", "zeroed")]
    command = ["latency", *folders, "--batch", "2", "--length", "8", "--turns", "3"]
    assert main(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["dense", "dense"], ["zeroed", "sliced"]]
    assert float(rows[1][2]) < float(rows[0][2])  # MiB on disk
    assert rows[0][7] == "1.00"


def test_a_name_that_is_no_model_gets_one_line(capsys):
    assert main(["latency", "no-such-model"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sequence_beyond_the_models_positions_is_refused(tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "m")
    assert main(["latency", str(tmp_path / "m"), "--length", "100000"]) == 2
    assert "100000" in capsys.readouterr().err


def test_a_batch_that_would_take_long_is_left_out(monkeypatch):
    def slow(models, batch, length, turns, seconds):
        return [[0.5 * batch] * 3 for _ in models]

    monkeypatch.setattr(measure, "latency", slow)
    assert [speed.batch for speed in latency.of_cell(tiny(), 16)] == [1]
