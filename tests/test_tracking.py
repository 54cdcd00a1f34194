"""`--report-to`: a tracker sees the training, and changes nothing of it."""

import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from bench.api import BenchError
from bench.cli import main, run
from bench.core import provenance, run_settings
from bench.core.run_settings import TRACKERS, RunSettings
from bench.training import tracking
from tests import helpers

STEPS = 25
WATCHED = RunSettings(report_to="tensorboard")


class Rude(TrainerCallback):
    """A tracker that draws from every generator, as packages that invent names do."""

    seen: list = []

    def __init__(self):
        self.draw()

    def draw(self):
        random.random()
        np.random.rand()
        torch.rand(3)

    def on_train_begin(self, args, state, control, **more):
        self.draw()
        self.seen.append(("begin", args.run_name, args.project))

    def on_log(self, args, state, control, logs=None, **more):
        self.draw()
        self.seen.append((state.global_step, logs))

    def on_train_end(self, args, state, control, **more):
        self.draw()
        self.seen.append(("end",))


class Broken(Rude):
    def on_log(self, args, state, control, **more):
        super().on_log(args, state, control, **more)
        raise ConnectionError("no route to the tracker")


class Absent(Rude):
    def __init__(self):
        raise RuntimeError("not today")


def installed(monkeypatch, tracker):
    """Puts a tracker in the place of tensorboard's, as if its package were there."""
    monkeypatch.setattr(run_settings, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", tracker)
    monkeypatch.setattr(Rude, "seen", [])


def cell(method="pst"):
    return helpers.cell(method, budget__steps=STEPS, budget__batch=8)


def sha(fitted):
    return provenance.weights_sha256(fitted.model.state_dict())


def lasting(record):
    """A record without what no two runs share: seconds, memory, the time."""
    return record.model_copy(update={"cost": None, "speed": [], "time": ""})


@pytest.mark.parametrize("tracker", [Rude, Broken, Absent])
def test_weights_do_not_depend_on_a_tracker(tracker, monkeypatch):
    plain = sha(helpers.fit_cell(cell()))
    installed(monkeypatch, tracker)
    assert sha(helpers.fit_cell(cell(), settings=WATCHED)) == plain


def test_without_the_guard_they_would(monkeypatch):
    plain = sha(helpers.fit_cell(cell()))
    installed(monkeypatch, Rude)
    monkeypatch.setattr(tracking.seeds, "set_states", lambda _: None)
    assert sha(helpers.fit_cell(cell(), settings=WATCHED)) != plain


def test_a_record_is_the_same_with_a_tracker(monkeypatch):
    plain = helpers.run_cell(cell("gmp"))
    installed(monkeypatch, Rude)
    assert lasting(helpers.run_cell(cell("gmp"), settings=WATCHED)) == lasting(plain)
    assert Rude.seen


def test_a_tracker_sees_the_losses_under_the_name_of_the_cell(monkeypatch):
    installed(monkeypatch, Rude)
    helpers.fit_cell(cell(), settings=WATCHED)
    begin, *logs, end = Rude.seen
    assert begin[1].startswith("tiny.reviews/tiny-bert/pst/unstructured-0.50-")
    assert begin[1].endswith("/seed1")
    assert begin[2] == "sparsebench"
    assert end == ("end",)
    losses = {step: seen["loss"] for step, seen in logs if "loss" in seen}
    assert list(losses) == [1, 10, 20]
    assert all(0 < loss < 10 for loss in losses.values())
    assert all("learning_rate" in seen for _, seen in logs if "loss" in seen)


def test_a_tracker_that_fails_is_left_out(monkeypatch, caplog):
    installed(monkeypatch, Broken)
    helpers.fit_cell(cell(), settings=WATCHED)
    assert len([seen for seen in Rude.seen if len(seen) == 2]) == 1
    assert "no route to the tracker" in caplog.text


def test_nobody_watches_by_default(monkeypatch):
    installed(monkeypatch, Rude)
    helpers.fit_cell(cell())
    assert not Rude.seen


def test_one_shot_cells_have_nothing_to_watch(monkeypatch):
    installed(monkeypatch, Rude)
    helpers.fit_cell(helpers.cell("magnitude", "tiny-gpt2", task="tiny/wikitext"), settings=WATCHED)
    assert not Rude.seen


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_is_named_before_anything_runs(tracker, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run_settings, "find_spec", lambda _: None)
    line = ["--suite", "tiny", "--method", "pst", "--report-to", tracker, "--results"]
    code = main.main(["run", *line, str(tmp_path / "r"), "--reports", str(tmp_path / "p")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith(
        f"--report-to {tracker} needs the package {tracker}: pip install {tracker}\n"
    )
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_worker_without_the_package_says_so(monkeypatch):
    monkeypatch.setattr(run_settings, "find_spec", lambda _: None)
    with pytest.raises(BenchError, match="pip install tensorboard"):
        helpers.fit_cell(cell(), settings=WATCHED)


def test_the_flag_takes_the_trackers_that_are_known():
    parser = main.parser()
    for name in TRACKERS:
        assert parser.parse_args(["run", "--report-to", name]).report_to == name
        assert name in integration_utils.INTEGRATION_TO_CALLBACK
    with pytest.raises(SystemExit):
        parser.parse_args(["run", "--report-to", "paper"])
    assert run.run_cells is parser.parse_args(["run"]).handler


def test_no_record_and_no_checkpoint_names_a_tracker():
    assert WATCHED.as_env() == RunSettings().as_env() == {}


def test_a_suite_cannot_set_a_tracker():
    with pytest.raises(BenchError, match=r"\[trainer\] report_to"):
        RunSettings.of({"report_to": "wandb"})


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_a_folder_for_each_cell(monkeypatch, tmp_path):
    plain = sha(helpers.fit_cell(cell()))
    monkeypatch.chdir(tmp_path)
    assert sha(helpers.fit_cell(cell(), settings=WATCHED)) == plain
    (events,) = tmp_path.rglob("events.out.*")
    assert events.relative_to(tmp_path).parts[:2] == (".sparsebench", "tensorboard")
    assert events.stat().st_size > 1000
