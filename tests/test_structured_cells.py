"""Cells of structured decoders, from the weights to the record."""

import pytest

from bench.planning import registry
from tests import helpers
from tests.helpers import run_cell

CUT = {"shortgpt": "blocks", "sleb": "blocks", "wanda-sp": "heads+neurons", "flap": "heads+neurons"}


@pytest.mark.parametrize("name", CUT)
def test_what_goes_is_saved_in_products_bytes_and_the_measured_form(name):
    cell = helpers.cell(name, "tiny-llama", task="tiny/wikitext", budget__calib=8)
    assert str(cell.pattern) == CUT[name] == registry.method(name).patterns[0]
    record = run_cell(cell)
    assert record.sparsity.pattern_ok
    assert record.sparsity.overall == pytest.approx(0.5, abs=0.05)
    macs = record.macs
    assert macs.realizable < macs.dense
    # Attention products go with their heads, so that more is saved than products by zeros.
    assert macs.realizable <= macs.effective
    assert record.bytes.formats["sliced"] < record.bytes.dense
    assert {speed.form for speed in record.speed} == {"sliced"}
