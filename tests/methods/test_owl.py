"""Properties of OWL (methods/README.md, owl); the rest is in test_block_allocation.py."""

import pytest
import torch

from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from methods.owl import OWL, outlier_fraction
from tests import helpers


def test_outliers_are_counted_over_the_whole_block_and_scale_free():
    scores = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[1.0, 26.0]])]
    # The mean of the five is 6: 26 is above 4 times that, not above 5 times.
    assert outlier_fraction(scores, 4) == pytest.approx(1 / 5)
    assert outlier_fraction(scores, 5) == 0
    assert outlier_fraction([64 * s for s in scores], 4) == pytest.approx(1 / 5)


def test_a_block_with_outlying_inputs_stays_denser():
    cell = helpers.cell("owl", "tiny-bert", 0.7)
    job = Job.resolve(cell)
    loaded = loading.load_for_task(job.place, job.task, 1)
    loaded.tok.model_max_length = 32
    norm = loaded.model.bert.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        norm.weight[:2] *= 60.0  # two inputs of block 1 stand out
    method = OWL()
    method.attach(loaded.model, make_context(job, loaded, torch.device("cpu")))
    assert method.levels[1] < method.levels[0]
    assert method.levels[0] - method.levels[1] == pytest.approx(0.16)
