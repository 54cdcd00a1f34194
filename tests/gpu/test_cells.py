"""Whole cells on a GPU, from `run` to the record."""

import pytest

from bench.planning import registry
from bench.planning.job import Job
from tests.helpers import cell, models_for, run_cell

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("method", registry.builtin("method"))
def test_every_method_runs_and_keeps_its_promise(method, device):
    budget = {"budget__steps": 12, "budget__batch": 8}
    model = models_for(registry.method(method))[0]
    run_cell(cell("dense", model, **budget))  # others start from it, or learn from it
    made = cell(method, model, **budget)
    record = run_cell(made)
    assert record.status == "done", record.error
    assert record.sparsity.pattern_ok
    if Job.resolve(made).make_method().promises_sparsity and made.sparsity:
        assert record.sparsity.overall == pytest.approx(0.5, abs=0.01)
