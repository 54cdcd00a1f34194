"""Methods broken on purpose: the committed baseline of the tiny suite must notice each of them.

The cells are run for real, in this process; `make check` runs the same ones unbroken.
"""

from pathlib import Path

from bench.api import BenchError, Cell
from bench.core.store import path_of
from bench.costs import parameters
from bench.review import gate
from bench.weights import targets
from methods import gmp
from methods.shared.masks import pruned_count
from tests.helpers import run_cell

BASELINE = Path(__file__).parents[1] / "results" / "baselines" / "tiny.json"


def cell(seed):
    return Cell(
        task="tiny/reviews",
        model="tiny-bert",
        method="gmp",
        pattern="unstructured",
        sparsity=0.5,
        seed=seed,
        overrides=(("budget.steps", 200),),
    )


def failing(seeds=(1,)):
    """What the gate does not let pass of gmp's row, and the kinds of its cells' failures.

    What is counted is the same in every seed, so one is enough.
    """
    records, kinds = [], []
    for seed in seeds:
        try:
            records.append(run_cell(cell(seed), lambda *_: None))
        except BenchError as error:
            kinds.append(error.kind)
    row = str(path_of(cell(1)).parent)
    changes = gate.changes({row: gate.read_baseline(BASELINE)[row]}, gate.rows_of(records))
    return {c.what for c in changes if c.fails}, kinds


def test_a_top_k_that_is_off_by_one(monkeypatch):
    monkeypatch.setattr(gmp, "pruned_count", lambda n, s: max(pruned_count(n, s) - 1, 0))
    found, kinds = failing()
    assert {"params.nonzero", "sparsity.overall"} <= found
    assert not kinds  # too little for the contract, which allows one weight a matrix


def test_a_mask_that_is_not_applied_at_export(monkeypatch):
    def merge(model):
        for layer in model.modules():
            if isinstance(layer, gmp.MagnitudeMask):
                layer.keep = None
        unbroken(model)

    unbroken = gmp.merge
    monkeypatch.setattr(gmp, "merge", merge)
    assert failing() == ({"row"}, ["contract"])


def test_heads_that_are_counted_wrongly(monkeypatch):
    for module in (parameters, targets):
        monkeypatch.setattr(module, "head_parameters", lambda model: iter(()))
    found, _ = failing()
    assert found >= {"params.trainable.body", "params.trainable.head", "macs.head"}


def test_a_learning_rate_of_zero(monkeypatch):
    monkeypatch.setattr(gmp.GMP, "lr_factor", lambda self, progress: 0.0)
    found, kinds = failing(seeds=(1, 2, 3))
    assert "accuracy" in found
    assert not kinds
