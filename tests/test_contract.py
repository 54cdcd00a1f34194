"""The contract of a method, for every registered method on tiny BERT, GPT-2 (Conv1D) and Llama.

A method of another package takes part as soon as it is installed.
"""

import re
from importlib.metadata import EntryPoint

import pytest
import torch

from bench.api import BenchError
from bench.core import provenance
from bench.core.parameters import fields_of
from bench.core.pattern import UNSTRUCTURED, Pattern
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import loading
from bench.weights import side_branch, targets
from methods.shared.masks import pruned_count
from tests import helpers
from tests.helpers import fit_cell, run_cell, trained_dir

STEPS = {"budget__steps": 6, "budget__batch": 4}
TEMPLATE = "fixed-mask"
METHODS = [*registry.names("method"), TEMPLATE]
quiet = lambda *_: None  # noqa: E731


def fitted(name, model, seed=1, **more):
    """Runs a cell up to the finished model, its dense cell before it where it needs one."""
    cell = helpers.cell(name, model, seed=seed, **STEPS, **more)
    if Job.resolve(cell).needs_dense and not trained_dir(cell.dense).is_dir():
        run_cell(cell.dense, quiet)
    return cell, fit_cell(cell, quiet)


@pytest.fixture(scope="module", autouse=True)
def template():
    """The template takes part as a registered method does."""
    entries = registry._entries("method")
    entries[TEMPLATE] = EntryPoint(TEMPLATE, "methods.TEMPLATE:FixedMask", "sparsebench.methods")
    yield
    del entries[TEMPLATE]


@pytest.fixture(scope="module")
def once():
    """Every (method, model) is fitted once and looked at by several tests."""
    cache = {}

    def get(name, model):
        if (name, model) not in cache:
            cache[name, model] = fitted(name, model)
        return cache[name, model]

    return get


def takes(name):
    """The tiny models that a method, or the template, can prune."""
    return helpers.ARCHITECTURES if name == TEMPLATE else helpers.models_for(registry.method(name))


each = pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name in METHODS for model in takes(name)]
)
method = pytest.mark.parametrize("name", METHODS)


@each
def test_sparsity_is_exact_in_the_finished_model(name, model, once):
    cell, fit = once(name, model)
    if not fit.method.promises_sparsity or cell.pattern != UNSTRUCTURED:
        pytest.skip("promises no exact unstructured sparsity")
    if not fit.method.uniform:
        found = helpers.zeros(fit.model)
        total = sum(t.weight.numel() for t in targets.prunable(fit.model))
        assert sum(found.values()) == pruned_count(total, cell.sparsity)
        return
    split = getattr(fit.method.params, "split_qkv", False)
    for target in targets.prunable(fit.model):
        parts = target.parts if split else 1
        expected = parts * pruned_count(target.weight.numel() // parts, cell.sparsity)
        assert helpers.zeros(fit.model)[target.name] == expected


@each
def test_n_m_holds_in_every_row(name, model):
    if not Pattern("2:4").made_by(registry.method(name).patterns):
        pytest.skip("makes no N:M")
    _, fit = fitted(name, model, pattern="2:4")
    for target in targets.prunable(fit.model):
        assert bool((target.weight.reshape(-1, 4).count_nonzero(dim=1) == 2).all())


@method
def test_n_m_refuses_a_width_that_is_no_multiple(name):
    if not Pattern("2:4").made_by(registry.method(name).patterns):
        pytest.skip("makes no N:M")
    with pytest.raises(BenchError, match="multiple of 5"):
        fitted(name, "tiny-bert", pattern="2:5")


@each
def test_sparsity_zero_leaves_one_shot_logits_alone(name, model):
    if registry.method(name).trains:
        pytest.skip("a training method")
    before, _, _ = helpers.attached(helpers.cell("dense", model))
    after, _, _ = helpers.attached(helpers.cell(name, model, sparsity=0.0))
    assert torch.equal(helpers.logits(before), helpers.logits(after))


@each
def test_only_targets_and_what_trains_may_change(name, model, once):
    cell, fit = once(name, model)
    task = registry.task(cell.task)
    one_shot = not type(fit.method).trains
    weights = trained_dir(cell.dense) if one_shot else None
    start = helpers.load(cell.model, task, cell.seed, weights).model
    declared = {f"{t.name}.weight" for t in targets.prunable(start)}
    if cell.pattern.removes_units:  # a unit goes with its biases
        declared |= {f"{t.name}.bias" for t in targets.prunable(start)}
    attached, method_, _ = helpers.attached(cell)
    if not one_shot:
        held = {id(p) for g in method_.param_groups(attached) for p in g["params"]}
        trained = {n for n, p in attached.named_parameters() if id(p) in held}
        # A parametrized bias is stored as parametrizations.bias.original.
        declared |= {re.sub(r"parametrizations\.(\w+)\.original$", r"\1", n) for n in trained}
    after = fit.model.state_dict()
    changed = {n for n, v in start.state_dict().items() if not torch.equal(v, after[n])}
    assert changed <= declared


@each
def test_finished_model_survives_saving(name, model, once, tmp_path):
    _, fit = once(name, model)
    fit.model.save_pretrained(tmp_path)
    again = loading.load_model(tmp_path, type(fit.model))
    assert torch.allclose(helpers.logits(fit.model), helpers.logits(again), atol=1e-5)
    assert not any(hasattr(m, "parametrizations") for m in fit.model.modules())
    fresh, _, _ = helpers.attached(helpers.cell("dense", model))
    # A branch is saved beside its weight; it is all that may be new.
    plain = [type(m) for m in fit.model.modules() if not isinstance(m, side_branch.Branch)]
    assert plain == [type(m) for m in fresh.modules()]


@each
def test_trainable_is_what_the_optimizer_holds_and_the_closed_form(name, model, once):
    _, fit = once(name, model)
    start, _, _ = helpers.attached(helpers.cell("dense", model))
    head = sum(p.numel() for _, p in targets.head_parameters(start))
    assert fit.trained.trainable.head == (head if type(fit.method).trains else 0)
    body = fit.method.closed_form(start)
    if body is None:
        assert name not in registry.builtin("method"), "a built-in method needs a closed form"
        pytest.skip("states no closed form")
    assert fit.trained.trainable.body == body


@method
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    def digest(seed):
        fit = fitted(name, takes(name)[0], seed=seed)[1]
        return provenance.weights_sha256(fit.model.state_dict())

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@method
def test_budget_is_respected(name, monkeypatch):
    cls = registry.method(name)
    if not cls.trains:
        pytest.skip("trains nothing")
    seen = []
    original = cls.step

    def step(self, model, progress):
        seen.append(progress)
        original(self, model, progress)

    monkeypatch.setattr(cls, "step", step)
    fitted(name, "tiny-bert")
    assert seen == [t / 6 for t in range(6)] + [1.0]


@method
def test_a_method_describes_itself_and_every_parameter(name):
    kind = registry.method(name)
    assert kind.summary
    assert bool(kind.paper) == bool(kind.year)
    for field, about in fields_of(kind.Params).items():
        assert not about.is_required(), f"{name}.{field} has no default"
        if name in (*registry.builtin("method"), TEMPLATE):
            assert about.description, f"{name}.{field} has no description"
