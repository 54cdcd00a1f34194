"""A training that is killed and goes on ends as if nothing had happened."""

import json
import logging
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import methods
from bench.core import provenance
from bench.core.errors import BenchError
from bench.pipeline.cache import clear_scratch, scratch_dir
from bench.planning import registry
from bench.planning.job import Job
from bench.training import checkpoint, state
from bench.training.state import Saved, Unfit
from bench.weights import precision
from bench.weights.targets import merge
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


def checkpoints(cell, steps, place):
    """Runs the cell; copies of what a kill after one of these updates would leave lie in `place`.

    Returns what it ended with.
    """

    def emit(phase, done, _):
        if phase == "train" and done - 1 in steps:
            shutil.copytree(
                scratch_dir(Job.resolve(cell)) / f"checkpoint-{done - 1}", place / str(done - 1)
            )

    found = outcome(fit_cell(cell, emit, resume=True))
    clear_scratch(Job.resolve(cell))
    return found


def resumed(cell, checkpoint):
    """What a run ends with that goes on from the copy of a checkpoint."""
    step = int(checkpoint.name)
    shutil.copytree(checkpoint, scratch_dir(Job.resolve(cell)) / f"checkpoint-{step}")
    fit = fit_cell(cell, quiet, resume=True)
    clear_scratch(Job.resolve(cell))
    assert fit.trained.resumed == step, f"{cell.method} starts over after a kill: see the log"
    assert fit.trained.earlier_s > 0
    return outcome(fit)


def check(cell, steps, place):
    """A run that is killed after any of these updates ends as one without checkpoints does."""
    undisturbed = outcome(fit_cell(cell, quiet))
    assert checkpoints(cell, steps, place) == undisturbed, "writing checkpoints changes the numbers"
    for step in steps:
        if resumed(cell, place / str(step)) != undisturbed:
            pytest.fail(
                f"{cell.method} ends with other bytes when it goes on after update {step} of "
                f"{STEPS}: its checkpoint lacks something. Name in `state` what training changes, "
                "or keep it in buffers"
            )


@pytest.mark.parametrize("name", TRAINING)
def test_every_method_ends_with_the_same_bytes(name, tmp_path):
    if registry.method(name).state is None:
        pytest.skip("declares no state, so it starts over")
    drawn = random.Random(name).choice([2, 4, 5, 6, 7, STEPS - 1])
    check(cell(name), (drawn, 8), tmp_path)  # 8: between two epochs


@pytest.mark.parametrize(
    ("name", "steps", "more"),
    [
        # Before the coefficients are folded, and after.
        ("dsee", (3, 5), {"pattern": "heads+neurons"}),
        ("movement", (9,), {"mode": "soft", "distill": 0.5, "pattern": "block:16x16+neurons"}),
        ("movement", (5,), {"mode": "soft", "target": "lagrangian"}),
        # While it collects gradients.
        ("rosa", (3, 4), {"gradients": 3, "model": "tiny-gpt2"}),
        ("ast", (9,), {"slorb": "mean", "model": "tiny-llama"}),
        ("gmp", (9,), {"task": "tiny/wikitext", "model": "tiny-gpt2", "pattern": "2:4"}),
        # Inside a window of the ramp, at its end, and in the final hold.
        ("platon", (4, 6, 10), {"every": 3}),
        ("l0", (5,), {"target": "lagrangian"}),
        ("losparse", (5, 10), {"every": 3}),
        # While it collects gradients, and right before and after a choice.
        ("obert", (4, 5, 6), {"choices": 2, "start": 0.5, "gradients": 3}),
    ],
)
def test_phases_and_variants(name, steps, more, tmp_path):
    check(cell(name, **more), steps, tmp_path)


def test_under_autocast(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "supports_bf16", lambda _: True)
    check(cell("pst", budget__steps=5, budget__batch=16), (3,), tmp_path)


def test_twice_killed():
    made = cell("platon")
    undisturbed = fit_cell(made, quiet)
    for step in (4, 8, 10):
        killed(made, step)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    clear_scratch(Job.resolve(made))


def test_checkpoints_do_not_change_what_they_record():
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    assert [p.name for p in scratch_dir(Job.resolve(made)).iterdir()] == [f"checkpoint-{STEPS - 1}"]
    clear_scratch(Job.resolve(made))


@pytest.mark.parametrize("how", ["cut", "other", "foreign", "half", "text"])
def test_what_is_no_checkpoint_of_this_training_is_not_taken(how, monkeypatch):
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)
    killed(made, 8)
    (place,) = scratch_dir(Job.resolve(made)).iterdir()
    state = place / "state.safetensors"
    if how == "cut":
        state.write_bytes(state.read_bytes()[:-5000])
    elif how == "text":
        state.write_text("no tensors")
    elif how == "half":  # killed while it was written
        place.rename(place.with_name(".writing-abc"))
    elif how == "foreign":  # complete, but of another method
        killed(cell("lora"), 8)
        (other,) = scratch_dir(Job.resolve(cell("lora"))).iterdir()
        text = (other / "state.safetensors").read_bytes()
        state.write_bytes(text.replace(_identity(text), _identity(state.read_bytes())))
    else:
        monkeypatch.setattr(provenance, "sources_sha256", lambda: "changed code")
    fit = fit_cell(made, quiet, resume=True)
    assert fit.trained.resumed == 0
    assert outcome(fit) == outcome(undisturbed)
    assert [p.name for p in scratch_dir(Job.resolve(made)).glob("[!.]*")] == [
        f"checkpoint-{STEPS - 1}"
    ]
    clear_scratch(Job.resolve(made))


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
    """Ends with the moving average of its weights; keeps all kinds of state that have a name."""

    name = "average"
    state = ("count", "mean", "losses", "noise", "projection", "report")

    def attach(self, model, ctx):
        self.count, self.mean, self.losses, self.noise = 0, None, (), ctx.rng
        self.projection = nn.Linear(1, 1)
        with torch.no_grad():
            self.projection.weight.fill_(1.0)

    def loss(self, model, inputs, outputs):
        self.losses += (float(outputs.loss.detach()),)
        self.report["highest"] = max(self.losses)
        scale = 1 + 0.1 * torch.rand(1, generator=self.noise) + 0.01 * len(self.losses)
        return outputs.loss * (scale * self.projection.weight.detach()).squeeze()

    def optimizer(self, groups):
        made = super().optimizer(groups)
        made.register_step_post_hook(lambda *_: self.average(groups))
        return made

    @torch.no_grad()
    def average(self, groups):
        self.count += 1
        self.projection.weight.mul_(0.9)
        weights = [p for group in groups for p in group["params"]]
        if self.mean is None:
            self.mean = [torch.zeros_like(p) for p in weights]
        for p, mean in zip(weights, self.mean, strict=True):
            mean.lerp_(p, 1 / self.count)
        self.weights = weights  # the same ones in every update

    @torch.no_grad()
    def finish(self, model):
        for p, mean in zip(self.weights, self.mean, strict=True):
            p.copy_(mean)


class Growing(Dense):
    """Keeps state in its modules: a buffer that is None at first, one that grows, a late freeze."""

    name = "growing"
    state = ()

    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keep", None)
            self.register_buffer("sizes", torch.zeros(0), persistent=False)

        def forward(self, stored):
            if self.keep is None and len(self.sizes) == 4:
                self.keep = (stored.detach().abs() > stored.detach().abs().median()).float()
            if len(self.sizes) > 4:
                stored = stored * self.sizes.mean().detach()
            return stored if self.keep is None else stored * self.keep

    def attach(self, model, ctx):
        self.masks = [self.Mask() for _ in ctx.targets]
        for target, mask in zip(ctx.targets, self.masks, strict=True):
            target.parametrize(mask)
        self.late = ctx.targets[0].module.bias

    def step(self, model, progress):
        self.late.requires_grad_(round(progress * STEPS) < 5 and self.late.requires_grad)
        for mask in self.masks:
            mask.sizes = torch.cat([mask.sizes, 1 + mask.sizes.new_tensor([progress])])

    def finish(self, model):
        merge(model)


class Forgetful(Average):
    """Does not say that it counts."""

    name = "forgetful"
    state = tuple(name for name in Average.state if name != "count")


class Undeclared(Average):
    """Says nothing, so nobody relies on it."""

    name = "undeclared"
    state = None


class Odd(Average):
    """Names what no file can hold."""

    name = "odd"
    state = (*Average.state, "turns")

    def attach(self, model, ctx):
        super().attach(model, ctx)
        self.turns = iter([1.0])


@pytest.mark.parametrize("kind", [Average, Growing])
def test_all_kinds_of_state_are_resumed(registered, kind, tmp_path):
    registered(kind)
    check(cell(kind.name), (4, 10), tmp_path)


def test_a_method_that_forgets_state_fails(registered, tmp_path):
    registered(Forgetful)
    with pytest.raises(pytest.fail.Exception, match="forgetful ends with other bytes .* update 6"):
        check(cell("forgetful"), (6,), tmp_path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Undeclared, "cannot be resumed: method undeclared does not declare its `state`"),
        (Odd, "cannot be resumed: method.turns is a builtins.list_iterator; a state is made of"),
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
    assert told in caplog.text
    clear_scratch(Job.resolve(made))


def test_a_full_disk_costs_the_checkpoint_only(monkeypatch, caplog):
    made = cell("gmp")
    undisturbed = fit_cell(made, quiet)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.safetensors_file, "write", full)
    assert outcome(fit_cell(made, quiet, resume=True)) == outcome(undisturbed)
    assert "No space left on device" in caplog.text
    assert list(scratch_dir(Job.resolve(made)).iterdir()) == []


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
    kept.save(1, dict, slow)
    assert kept.next == now[0] + 30 / checkpoint.SHARE


# What a checkpoint holds, without any training.


def round_trip(**parts):
    text, tensors = state.flatten(parts)
    return Saved(json.loads(text), {k: v.clone() for k, v in tensors.items()}.__getitem__)


def test_plain_data_comes_back_as_it_was():
    told = {"a": [1, 2.5, None, ("x", (True,))], 3: {"b": float("inf")}, "c": []}
    assert round_trip(x=told)["x"] == told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.uint8])
def test_tensors_keep_type_and_values(dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)
    found = round_trip(x=[x])["x"][0]
    assert found.dtype == dtype
    assert torch.equal(found, x)


def test_tensors_keep_how_they_lie_in_memory():
    x = torch.arange(6.0).reshape(2, 3).t()
    wide = torch.ones(2, 1).expand(2, 3)  # one number stands in three places
    found = round_trip(x=(x, wide))["x"]
    assert [f.stride() for f in found] == [(1, 3), (3, 1)]
    assert torch.equal(found[0], x)
    assert torch.equal(found[1], wide)


def linear(**buffers):
    made = nn.Sequential(nn.Linear(3, 2))
    for name, value in buffers.items():
        made[0].register_buffer(name, value)
    return made


def test_parameters_and_buffers_stay_the_tensors_that_they_are():
    later = linear(keep=torch.tensor([True, False]), late=torch.ones(2), gone=None)
    fresh = linear(keep=torch.tensor([False, False]), late=None, gone=torch.ones(1))
    weight, keep = fresh[0].weight, fresh[0].keep
    state.load_model(fresh, round_trip(m=state.of_model(later)).items("m"))
    assert fresh[0].weight is weight
    assert fresh[0].keep is keep
    assert weight.requires_grad
    assert torch.equal(weight, later[0].weight)
    assert keep.tolist() == [True, False]
    assert fresh[0].late.tolist() == [1, 1]
    assert fresh[0].gone is None


def test_tied_weights_are_written_once_and_stay_tied():
    later, fresh = (nn.ModuleList([nn.Linear(3, 3, False), nn.Linear(3, 3, False)]) for _ in "ab")
    for model in (later, fresh):
        model[1].weight = model[0].weight
    saved = round_trip(m=state.of_model(later))
    assert [name for name, value in saved["m"].items() if value is not None] == ["0.weight"]
    state.load_model(fresh, saved.items("m"))
    assert fresh[1].weight is fresh[0].weight
    assert torch.equal(fresh[1].weight, later[0].weight)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (nn.Sequential(nn.Linear(3, 1)), "0.weight has another shape"),
        (nn.Sequential(nn.Linear(3, 2, bias=False)), "the model has no 0.bias"),
        (linear(keep=None), "the checkpoint has no 0.keep"),
    ],
)
def test_another_model_is_no_match(other, told):
    with pytest.raises(Unfit, match=told):
        state.load_model(other, round_trip(m=state.of_model(linear())).items("m"))


@pytest.mark.parametrize(
    "odd",
    [iter([1]), random.Random(1), {1}, torch.ones(1).numpy(), nn.Parameter(torch.ones(1))],
)
def test_what_is_no_plain_data_is_refused(odd):
    with pytest.raises(BenchError, match=r"root\.here\[0\] is a"):
        state.flatten({"root": {"here": [odd]}})
