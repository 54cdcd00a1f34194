"""A training that is killed and goes on ends as if nothing had happened."""

import itertools
import logging
import random
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import methods
from bench.core import provenance
from bench.pipeline.cache import clear_scratch, scratch_dir
from bench.planning import registry
from bench.planning.job import Job
from bench.training import checkpoint, snapshot
from bench.training.object_state import Unseen
from bench.training.snapshot import Unfit
from bench.weights import precision
from methods.dense import Dense
from tests import helpers
from tests.helpers import fit_cell, run_cell, trained_dir

quiet = lambda *_: None  # noqa: E731
STEPS, BATCH = 12, 128  # eight updates an epoch: the second one is cut short
TRAINING = [name for name in registry.names("method") if registry.method(name).trains]


class Killed(BaseException):
    """Not an Exception: nobody may handle it, as nobody handles SIGKILL."""


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CHECKPOINT_S", "0")
    monkeypatch.setattr("os.fsync", lambda _: None)  # nobody pulls the plug here


def cell(name, model="tiny-bert", **more):
    more = {"budget__steps": STEPS, "budget__batch": BATCH} | more
    made = helpers.cell(name, model, **more)
    if Job.resolve(made).needs_dense and not trained_dir(made.dense).is_dir():
        run_cell(made.dense, quiet)
    return made


def killed(cell, step):
    """Runs the cell up to the end of an update, and leaves what a kill would leave."""

    def emit(phase, done, _):
        if phase == "train" and done == step + 1:
            raise Killed

    with pytest.raises(Killed):
        fit_cell(cell, emit, resume=True)


def outcome(fit):
    state = provenance.weights_sha256(fit.model.state_dict())
    return state, fit.trained.trainable, fit.method.report, fit.method.params


def resumed(cell, step):
    """(what an undisturbed run ends with, what the killed and resumed one does)."""
    undisturbed = fit_cell(cell, quiet)
    killed(cell, step)
    fit = fit_cell(cell, quiet, resume=True)
    clear_scratch(cell)
    assert fit.trained.resumed == step
    assert fit.trained.earlier_s > 0
    return outcome(undisturbed), outcome(fit)


@pytest.mark.parametrize("name", TRAINING)
def test_every_method_ends_with_the_same_bytes(name):
    step = random.Random(name).randrange(1, STEPS - 1)
    undisturbed, fit = resumed(cell(name), step)
    assert fit == undisturbed


@pytest.mark.parametrize(
    ("name", "step", "more"),
    [
        ("dense", 8, {}),  # between two epochs
        ("dsee", 3, {"pattern": "heads+neurons"}),  # before the coefficients are folded
        ("dsee", 5, {"pattern": "heads+neurons"}),  # and after
        ("movement", 9, {"mode": "soft", "distill": 0.5, "pattern": "block:16x16+neurons"}),
        ("rosa", 3, {"gradients": 3, "model": "tiny-gpt2"}),  # while it collects gradients
        ("ast", 9, {"slorb": "mean", "model": "tiny-llama"}),
        ("gmp", 9, {"task": "tiny/wikitext", "model": "tiny-gpt2", "pattern": "2:4"}),
    ],
)
def test_phases_and_variants(name, step, more):
    undisturbed, fit = resumed(cell(name, **more), step)
    assert fit == undisturbed


def test_under_autocast(monkeypatch):
    monkeypatch.setattr(precision, "supports_bf16", lambda _: True)
    undisturbed, fit = resumed(cell("pst", budget__steps=5, budget__batch=16), 3)
    assert fit == undisturbed


def test_twice_killed():
    made = cell("platon")
    undisturbed = fit_cell(made, quiet)
    for step in (4, 8, 10):
        killed(made, step)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    clear_scratch(made)


def test_checkpoints_do_not_change_what_they_record():
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    assert [p.name for p in scratch_dir(made).iterdir()] == [f"checkpoint-{STEPS - 1}"]
    clear_scratch(made)


@pytest.mark.parametrize("how", ["cut", "other", "foreign", "half", "text"])
def test_what_is_no_checkpoint_of_this_training_is_not_taken(how, monkeypatch):
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)
    killed(made, 8)
    (place,) = scratch_dir(made).iterdir()
    state = place / "state.safetensors"
    if how == "cut":
        state.write_bytes(state.read_bytes()[:-5000])
    elif how == "text":
        state.write_text("no tensors")
    elif how == "half":  # killed while it was written
        place.rename(place.with_name(".writing-abc"))
    elif how == "foreign":  # complete, but of another method
        killed(cell("lora"), 8)
        (other,) = scratch_dir(cell("lora")).iterdir()
        text = (other / "state.safetensors").read_bytes()
        state.write_bytes(text.replace(_identity(text), _identity(state.read_bytes())))
    else:
        monkeypatch.setattr(provenance, "sources_sha256", lambda: "changed code")
    fit = fit_cell(made, quiet, resume=True)
    assert fit.trained.resumed == 0
    assert outcome(fit) == outcome(undisturbed)
    assert [p.name for p in scratch_dir(made).glob("[!.]*")] == [f"checkpoint-{STEPS - 1}"]
    clear_scratch(made)


def _identity(data):
    return data.split(b'"identity":"', 1)[1][:64]


@pytest.fixture
def registered(monkeypatch):
    """Registers methods as another package would."""

    def register(kind):
        monkeypatch.setitem(methods.BUILTIN, kind.name, f"{__name__}:{kind.__name__}")
        registry._entries.cache_clear()

    yield register
    monkeypatch.undo()
    registry._entries.cache_clear()


class Average(Dense):
    """Keeps its state wherever it likes: the weights' moving average is what it ends with."""

    name = "average"

    @dataclass
    class Seen:
        count: int
        mean: dict

    def attach(self, model, ctx):
        self.ctx = ctx
        self.seen = self.Seen(0, {})
        self.losses = []
        self.noise = ctx.rng

    def loss(self, model, inputs, outputs):
        self.losses.append(float(outputs.loss.detach()))
        scale = 1 + 0.1 * torch.rand(1, generator=self.noise) + 0.01 * len(self.losses)
        return outputs.loss * scale.squeeze()

    def optimizer(self, groups):
        made = super().optimizer(groups)
        count = 0

        def average(*_):
            nonlocal count
            count += 1
            for group in groups:
                for p in group["params"]:
                    mean = self.seen.mean.setdefault(p, p.detach().clone())
                    mean.lerp_(p.detach(), 1 / count)

        made.register_step_post_hook(average)
        return made

    def finish(self, model):
        for p, mean in self.seen.mean.items():
            p.data.copy_(mean)
        self.report = {"first": self.losses[0], "sum": sum(self.losses)}


class Iterating(Average):
    """Holds an iterator, whose state nobody can see."""

    name = "iterating"

    def attach(self, model, ctx):
        super().attach(model, ctx)
        self.turns = itertools.cycle([1.0, 2.0, 3.0])

    def loss(self, model, inputs, outputs):
        return super().loss(model, inputs, outputs) * next(self.turns)


class Late(Average):
    """Makes an object of its own during training."""

    name = "late"

    def step(self, model, progress):
        if progress > 0.3 and not hasattr(self, "helper"):
            self.helper = self.Seen(7, {})


def test_a_method_that_does_nothing_special_is_resumed(registered):
    registered(Average)
    undisturbed, fit = resumed(cell("average"), 6)
    assert fit == undisturbed


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Iterating, "cannot be resumed: method.turns is a itertools.cycle"),
        (Late, "starts again: method.helper is a .*Seen that came up during training"),
    ],
)
def test_what_cannot_be_resumed_is_told_and_starts_over(registered, caplog, kind, told):
    registered(kind)
    made = cell(kind.name)
    undisturbed = fit_cell(made, quiet)
    with caplog.at_level(logging.WARNING):
        killed(made, 8)
        fit = fit_cell(made, quiet, resume=True)
    assert fit.trained.resumed == 0
    assert outcome(fit) == outcome(undisturbed)
    assert re.search(told, caplog.text)
    clear_scratch(made)


def test_a_full_disk_costs_the_checkpoint_only(monkeypatch, caplog):
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.tensorfile, "write", full)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    assert "No space left on device" in caplog.text
    assert list(scratch_dir(made).iterdir()) == []


def test_short_runs_write_none_and_writing_takes_its_share_at_most(tmp_path, monkeypatch):
    monkeypatch.delenv("SPARSEBENCH_CHECKPOINT_S")
    now = [0.0]
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    kept = checkpoint.Checkpoints(tmp_path, "me")
    now[0] = checkpoint.INTERVAL_S - 1
    assert not kept.due()
    now[0] = checkpoint.INTERVAL_S
    assert kept.due()
    slow = lambda _: now.__setitem__(0, now[0] + 30)  # noqa: E731
    kept.save(1, {}, slow)
    assert kept.next == now[0] + 30 / checkpoint.SHARE


# What a snapshot keeps, without any training.


def round_trip(roots, fresh):
    text, memory = snapshot.take(roots)
    copies = [m.clone() for m in memory]
    return snapshot.put_back(text, copies.__getitem__, fresh)


def test_aliases_and_views_stay_what_they_were():
    a = torch.arange(6.0)
    found = round_trip(
        {"x": [a, a, a.view(2, 3).t(), a.clone()], "y": {"same": a}},
        {"x": [torch.zeros(6)], "y": {}},
    )
    first, second, view, copy = found["x"]
    assert first is second is found["y"]["same"]
    assert view.stride() == (1, 3)
    first[5] = 9.0
    assert float(view[2, 1]) == 9.0
    assert float(copy[5]) == 5.0


def test_what_shared_memory_at_first_may_have_parted():
    shared = torch.zeros(3)
    fresh = SimpleNamespace(best=shared, now=shared)
    later = SimpleNamespace(best=torch.ones(3), now=torch.full((3,), 2.0))
    found = round_trip({"x": later}, {"x": fresh})["x"]
    assert found is fresh
    assert found.best.tolist() == [1, 1, 1]
    assert found.now.tolist() == [2, 2, 2]


def test_parameters_keep_their_identity():
    later, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    later.bias.requires_grad_(False)
    later.register_buffer("mask", None)
    fresh.register_buffer("mask", None)
    later.mask = torch.tensor([True, False])
    before = fresh.weight
    round_trip({"m": later}, {"m": fresh})
    assert fresh.weight is before
    assert torch.equal(fresh.weight, later.weight)
    assert not fresh.bias.requires_grad
    assert fresh.mask.tolist() == [True, False]


@pytest.mark.parametrize(
    "hidden",
    [iter([1]), (i for i in [1]), random.Random(1), open(__file__), torch.ones(1).numpy()],  # noqa: SIM115
)
def test_hidden_state_is_refused(hidden):
    with pytest.raises(Unseen, match=r"root\.here\[0\] is a"):
        snapshot.take({"root": SimpleNamespace(here=[hidden])})


def test_a_tensor_with_a_history_is_refused():
    with pytest.raises(Unseen, match="history"):
        snapshot.take({"root": torch.ones(1, requires_grad=True) * 2})


def test_another_type_is_no_match():
    text, memory = snapshot.take({"x": nn.ReLU()})
    with pytest.raises(Unfit, match=r"x is a .*ReLU that came up"):
        snapshot.put_back(text, memory.__getitem__, {"x": nn.GELU()})
