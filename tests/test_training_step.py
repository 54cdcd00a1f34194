"""`sparsebench speed`: what a method's name may carry."""

import pytest

from bench.api import BenchError
from bench.core.pattern import Pattern
from bench.costs import measure
from bench.pipeline import training_step
from bench.planning import registry


def test_a_name_carries_sparsity_and_parameters(monkeypatch):
    seen = []
    ast = registry.method("ast")
    attach = ast.attach

    def spy(self, model, ctx):
        seen.append((ctx.cell.pattern, ctx.cell.sparsity, self.params.kd, self.params.every))
        attach(self, model, ctx)

    monkeypatch.setattr(ast, "attach", spy)
    monkeypatch.setattr(measure, "in_fresh_process", lambda *_: 2**20)
    names = ["ast", "ast::kd=0", "ast:0.5:kd=0.5:every=7"]
    table = training_step.step_table(names, "tiny-bert", 2, length=8, steps=1, dtype="float32")
    assert all(f"{name} " in table for name in ["dense", *names])
    default = ast.Params()
    assert seen == [
        (Pattern("2:4"), 0.5, default.kd, default.every),  # N:M fixes its own sparsity
        (Pattern("2:4"), 0.5, 0.0, default.every),
        (Pattern("2:4"), 0.5, 0.5, 7),
    ]


def test_memory_is_the_peak_of_a_process_of_its_own():
    table = training_step.step_table(["dense"], "tiny-bert", 2, length=8, steps=1, dtype="float32")
    row = table.splitlines()[-1].split()
    assert (row[0], row[-1]) == ("dense", "1.00")
    assert 0 < float(row[-2]) < 4


def test_an_unknown_parameter_is_named():
    with pytest.raises(BenchError, match="method ast has no parameter 'kp'"):
        training_step.step_table(["ast::kp=0"], "tiny-bert", 2, 8, 1, "float32")


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("dense", 0.0), ("2:4", 0.5), ("1:3", 0.6667), ("unstructured", None)]
)
def test_patterns_that_fix_the_sparsity(pattern, sparsity):
    assert Pattern(pattern).sparsity == sparsity
