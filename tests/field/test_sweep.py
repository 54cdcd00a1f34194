"""Every text family of the installed transformers: right, or refused in one line."""

import pytest

from tests.field import sweep

pytestmark = pytest.mark.real


@pytest.mark.parametrize("family", sweep.families())
def test_no_family_is_wrong(family):
    found = sweep.outcome(family)
    if "build" in found:
        pytest.skip(found["build"])
    assert {step: told for step, told in found.items() if told.startswith("WRONG")} == {}
