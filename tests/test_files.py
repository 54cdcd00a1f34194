"""Folders are written whole or not at all, whoever else writes there."""

import errno
import os

import pytest

from bench.core import files
from bench.core.errors import BenchError
from bench.core.files import write_folder_atomically

MODES = ("refuse", "keep", "replace")


def fill(folder, text="new"):
    (folder / "a").write_text(text)


def old(out):
    """A folder with another content."""
    out.mkdir(parents=True)
    fill(out, "old")
    (out / "b").write_text("old")


def content(out):
    return {path.name: path.read_text() for path in out.iterdir()}


@pytest.mark.parametrize("existing", MODES)
def test_a_folder_appears_with_its_content(existing, tmp_path):
    out = tmp_path / "deep" / "out"
    with write_folder_atomically(out, existing) as folder:
        assert not out.exists()
        (folder.parent / "scrap").write_text("for a while")
        fill(folder)
    assert content(out) == {"a": "new"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("existing", MODES)
def test_what_is_there_is_refused_kept_or_replaced(existing, tmp_path):
    out = tmp_path / "out"
    old(out)
    if existing == "refuse":
        with (
            pytest.raises(BenchError, match=f"cannot write {out}: ") as error,
            write_folder_atomically(out, existing) as folder,
        ):
            fill(folder)
        assert error.value.kind == "disk"
    else:
        with write_folder_atomically(out, existing) as folder:
            fill(folder)
    assert content(out) == ({"a": "new"} if existing == "replace" else {"a": "old", "b": "old"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    with write_folder_atomically(tmp_path / "out") as folder:
        (tmp_path / "out").mkdir()
        fill(folder)
    assert content(tmp_path / "out") == {"a": "new"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("existing", MODES)
def test_a_full_disk_leaves_everything_as_it_was(existing, there, tmp_path):
    out = tmp_path / "deep" / "out"
    if there:
        old(out)

    def write():
        with write_folder_atomically(out, existing) as folder:
            fill(folder)
            raise OSError(errno.ENOSPC, "No space left on device", "some file")

    if there and existing == "keep":
        write()
    else:
        with pytest.raises(BenchError) as error:
            write()
        assert str(error.value) == f"cannot write {out}: No space left on device ENOSPC"
        assert error.value.kind == "disk"
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left - {"deep"} == ({"deep/out", "deep/out/a", "deep/out/b"} if there else set())
    if there:
        assert content(out) == {"a": "old", "b": "old"}
    if existing == "refuse" and not there:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", MODES)
def test_other_failures_stay_what_they_are(existing, tmp_path):
    out = tmp_path / "out"
    for failure in (BenchError("no network", "offline"), KeyboardInterrupt(), KeyError("x")):

        def fail(failure=failure):
            with write_folder_atomically(out, existing) as folder:
                fill(folder)
                raise failure

        with pytest.raises(type(failure)) as error:
            fail()
        assert error.value is failure
        assert list(tmp_path.iterdir()) == []


def test_two_that_replace_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    old(out)
    rename = os.rename

    def faster(source, target):
        if target == out:  # after the old one went and before ours comes
            out.mkdir()
            fill(out, "theirs")
        rename(source, target)

    with write_folder_atomically(out, "replace") as folder:
        fill(folder)
        monkeypatch.setattr(files.os, "rename", faster)
    assert content(out) == {"a": "theirs"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
