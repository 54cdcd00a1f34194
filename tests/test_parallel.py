"""One cell on several devices: the same training, and one failure is everybody's."""

import pytest
import torch
from safetensors.torch import load_file

from bench.api import BenchError
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.engine import isolate
from bench.engine.local import shares
from bench.planning import registry
from bench.planning.job import Job
from bench.planning.suites import load_suite
from tests import helpers
from tests.helpers import fit_cell

METHODS = """
    import os
    import torch
    from bench.weights import precision
    from methods.dense import Dense

    RANK = int(os.environ.get("RANK", 0))

    if os.environ.get("SHARDED"):
        # accelerate shards on accelerators only, though gloo could do it, too.
        from accelerate.state import DistributedType, PartialState

        plain = PartialState.__init__

        def pretend(self, *args, **kwargs):
            plain(self, *args, **kwargs)
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        PartialState.__init__ = pretend

    class Exact(Dense):
        '''In float32 and without dropout, so that all that is left is the order of sums.'''
        name = "exact"
        def attach(self, model, ctx):
            precision.supports_bf16 = lambda device: False
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        def optimizer(self, groups):
            return torch.optim.SGD(groups, lr=0.05)  # Adam makes much of a tiny gradient's sign
        def finish(self, model):
            if RANK == 0 and (folder := os.environ.get("KEEP")):
                model.save_pretrained(folder)

    class Parting(Dense):
        '''Its processes go different ways.'''
        name = "parting"
        def step(self, model, progress):
            with torch.no_grad():
                next(model.parameters()).add_(RANK * 1e-3)

    class Failing(Dense):
        '''One of its processes fails, while the others wait for it.'''
        name = "failing"
        def loss(self, model, inputs, outputs):
            if RANK == 1:
                raise RuntimeError("not my day")
            return outputs.loss

    class Dying(Dense):
        '''One of its processes is killed.'''
        name = "dying"
        def loss(self, model, inputs, outputs):
            if RANK == 1:
                os.kill(os.getpid(), 9)
            return outputs.loss

    class Diverging(Dense):
        '''One of its processes has a loss that is NaN.'''
        name = "diverging"
        n = 0
        def loss(self, model, inputs, outputs):
            self.n += 1
            return outputs.loss * (float("nan") if RANK == 1 and self.n == 3 else 1.0)
"""


HELD = {"tiny-bert": (120_832, 130), "tiny-gpt2": (124_992, 0)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs cells of these methods in processes of their own."""
    path = helpers.installed(tmp_path / "site", METHODS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry._entries.cache_clear()

    def run(name, settings, env=None, **more):
        more = {"budget__steps": 6, "budget__batch": 10} | more
        cell = helpers.cell(name, pattern="dense", **more)
        env = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(env or {})}
        return isolate.run_isolated(
            Job.resolve(cell), 600, tmp_path / "log", lambda *_: None, env, settings
        )

    yield run
    registry._entries.cache_clear()


def weights(run, place, settings, **more):
    env = {"KEEP": str(place)} | ({"SHARDED": "1"} if settings.sharded else {})
    record = run("exact", settings, env=env, **more)
    assert record.error is None, record.error
    assert {k: record.env[k] for k in settings.as_env()} == settings.as_env()
    assert (record.params.trainable.body, record.params.trainable.head) == HELD[more["model"]]
    return load_file(place / "model.safetensors")


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        # Eight updates an epoch with batches of 128: the last one has seven rows.
        (
            {"model": "tiny-bert", "budget__batch": 128, "budget__steps": 10},
            RunSettings(2, accumulate=2),
        ),
        (
            {"model": "tiny-gpt2", "task": "tiny/nlg"},
            RunSettings(2, trainer={"fsdp": True, "gradient_checkpointing": True}),
        ),
    ],
)
def test_processes_share_every_batch(run, tmp_path, more, settings):
    alone = weights(run, tmp_path / "alone", DEFAULTS, **more)
    found = weights(run, tmp_path / "shared", settings, **more)
    for name, value in alone.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("parting", "contract", "parting: the processes have come to different weights"),
        ("failing", "error", "RuntimeError: not my day"),
        ("dying", "killed", "ended by SIGKILL"),
        ("diverging", "nan", "the loss is not finite at step 3"),
    ],
)
def test_one_failure_is_everybodys(run, name, kind, told):
    record = run(name, RunSettings(2))
    assert record.error.kind == kind
    assert told in record.error.message


def suite(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text('description = "x"\ntasks = ["tiny/reviews"]\nmodels = ["tiny-bert"]\n' + text)
    return load_suite(str(path))


def test_the_suite_says_how_many(tmp_path):
    found = suite(tmp_path, "[trainer]\nprocesses = 2\ngradient_checkpointing = true\n")
    assert found.settings == RunSettings(2, trainer={"gradient_checkpointing": True})
    assert suite(tmp_path, "").settings == DEFAULTS


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("learning_rate = 1.0", "learning_rate: it takes processes, "),
        ("processes = 0", "processes = 0: write a whole number from 1 on"),
        ('processes = "2"', "processes = '2'"),
        ('fsdp = "full_shard"', "fsdp needs processes = 2 or more"),
    ],
)
def test_what_it_may_not_say(tmp_path, table, told):
    with pytest.raises(BenchError, match=rf"\[trainer\] {told}"):
        suite(tmp_path, f"[trainer]\n{table}\n")


def test_what_cannot_be_shared_is_told_before_training():
    def refused(settings):
        made = helpers.cell("pst", budget__batch=2)
        with pytest.raises(BenchError) as told:
            fit_cell(made, lambda *_: None, settings=settings)
        return str(told.value)

    assert refused(RunSettings(3)) == "[trainer] 3 processes cannot share a batch of 2"
    sharded = RunSettings(2, trainer={"fsdp": "full_shard"})
    assert refused(sharded).startswith("method pst cannot train with fsdp: it works on whole")


def test_each_slot_has_its_own_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shares(2, 2)] == ["3,5", "6,7"]
