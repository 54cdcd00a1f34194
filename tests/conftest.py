"""Every test runs offline, on tiny models, with a cache of its own."""

import gc
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_finish():
    """Keeps the collector from what was imported: every training would look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory, request):
    """Tests neither read nor write the user's cache; real-data tests use it on purpose."""
    if request.config.getoption("-m") == "real":  # by default it is "not real"
        yield
        return
    before = {k: os.environ.pop(k, None) for k in ("SPARSEBENCH_CACHE", "SPARSEBENCH_HUB")}
    os.environ["SPARSEBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


@pytest.fixture
def float32_passes(monkeypatch):
    """Calibrates in float32 on any device, for what is exact in float32 alone."""
    from methods.shared import passes

    monkeypatch.setattr(passes, "for_scoring", lambda head, device: "float32")
