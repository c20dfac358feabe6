"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxfactor import PreconditionError
from fxfactor.files import new_file, new_folder, write_text


def read_only(monkeypatch):
    """The tests may run as root, to whom every folder is writable."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)


def test_a_file_appears_when_the_block_ends(tmp_path):
    with new_file(tmp_path / "a.txt", "writing") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "a.txt", "writing") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_file(tmp_path):
    (tmp_path / "a.txt").write_text("earlier")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a.txt", "writing") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "a.txt").read_text() == "earlier"


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary:
        (temporary / "plan.json").write_text("{}")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_the_earlier_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("earlier")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary:
        (temporary / "plan.json").write_text("half")
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "plan.json").read_text() == "earlier"


def test_an_earlier_folder_of_ours_is_replaced_whole(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("earlier")
    (tmp_path / "a" / "more.txt").write_text("earlier")
    with new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary:
        (temporary / "plan.json").write_text("new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["plan.json"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary:
        (temporary / "plan.json").write_text("new")
    assert (tmp_path / "a" / "plan.json").exists()


def test_a_relative_path_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("a.txt", "new", "writing")
    with new_folder("b", "saving", marker="plan.json"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b"]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with (
        pytest.raises(PreconditionError, match=r"holds other files and no plan\.json; choose an empty or a new folder"),
        new_folder(tmp_path, "saving", marker="plan.json"),
    ):
        pass
    assert (tmp_path / "photo.jpg").read_text() == "mine"


def test_a_missing_parent_is_named(tmp_path):
    with (
        pytest.raises(PreconditionError, match=r"saving: the folder .*nowhere' does not exist; create it first"),
        new_folder(tmp_path / "nowhere" / "a", "saving", marker="plan.json"),
    ):
        pass


@pytest.mark.parametrize("what", [new_file, lambda path, what: new_folder(path, what, marker="plan.json")])
def test_a_read_only_place_is_named(tmp_path, monkeypatch, what):
    read_only(monkeypatch)
    with (
        pytest.raises(PreconditionError, match=r"saving: the folder .* is read-only; choose another one"),
        what(tmp_path / "a", "saving"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_says_no_only_when_written_to_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PreconditionError, match=r"cannot write beside .*: Read-only file system"):
        write_text(tmp_path / "a.txt", "new", "writing")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("mine")
    with (
        pytest.raises(PreconditionError, match="is a file; give the name of a folder"),
        new_folder(tmp_path / "a", "saving", marker="m"),
    ):
        pass


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    with pytest.raises(PreconditionError, match="is a folder; give the name of a file"):
        write_text(tmp_path, "new", "writing")


def test_an_earlier_folder_outlives_a_rename_that_fails(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("earlier")
    rename = os.replace

    def fails_for_the_new_one(source, target):
        if Path(source).name == "new":
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with (
        pytest.raises(OSError, match="no space"),
        new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary,
    ):
        (temporary / "plan.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "plan.json").read_text() == "earlier"


def test_nothing_earlier_is_touched_before_the_new_folder_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("earlier")
    with new_folder(tmp_path / "a", "saving", marker="plan.json") as temporary:
        (temporary / "plan.json").write_text("new")
        assert (tmp_path / "a" / "plan.json").read_text() == "earlier"
