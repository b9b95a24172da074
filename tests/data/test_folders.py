"""Folders that change places whole, and the record of what was written in one."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from medtune.data import folders
from medtune.data.folders import RECORD, claim, exchange, finish_swap, note, noted, refuse_taken, write_folder
from medtune.errors import ConfigError


def fill(text: str) -> Any:
    return lambda folder: (folder / "file").write_text(text)


def holds(folder: Path) -> str:
    return (folder / "file").read_text()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(params=["exchange", "in two steps"])
def swapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a folder takes another one's place."""
    if request.param == "in two steps":
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    return request.param


def test_a_folder_takes_the_place_of_another(swapping: str, tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        write_folder(tmp_path / ".aside", tmp_path / "final", fill(text))
        assert holds(tmp_path / "final") == text and os.listdir(tmp_path) == ["final"]


CALLS = ("rmtree", "replace", "flush", "exchange")


def test_whenever_it_is_killed_one_of_the_two_is_there_or_comes_back(
    swapping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each single operation on the disk, in turn, and inside the removal of the old folder."""
    before = len(os.listdir(tmp_path))
    for kill_at in range(1, 60):
        final, aside = tmp_path / f"final{kill_at}", tmp_path / f".aside{kill_at}"
        write_folder(aside, final, fill("old"))
        done = 0

        def counted(original: Any, kill_at: int = kill_at) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                done += 1
                if done == kill_at:
                    raise Killed
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(folders.shutil, "rmtree", counted(folders.shutil.rmtree))
            patch.setattr(folders.os, "replace", counted(os.replace))
            patch.setattr(folders, "flush", counted(folders.flush))
            patch.setattr(folders, "exchange", counted(folders.exchange))
            try:
                write_folder(aside, final, fill("new"))
            except Killed:
                pass
            else:
                break
        if swapping == "exchange":
            assert final.exists(), kill_at
        finish_swap(final)
        assert holds(final) in ("old", "new")
        write_folder(aside, final, fill("newest"))
        assert holds(final) == "newest" and not aside.exists()
    assert kill_at > 6, "each operation was tried"
    assert len(os.listdir(tmp_path)) == before + kill_at, "nothing is left beside"


def test_everything_is_on_the_disk_before_and_after_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, the folder, then the rename, then the name."""
    seen: list[tuple[str, str]] = []

    def fsync(descriptor: int) -> None:
        seen.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def replace(source: Any, target: Any) -> None:
        seen.append(("rename", Path(target).name))
        os.rename(source, target)

    monkeypatch.setattr("medtune.data.writing.os.fsync", fsync)
    monkeypatch.setattr(folders.os, "replace", replace)
    write_folder(tmp_path / ".aside", tmp_path / "final", fill("text"))
    assert seen == [("fsync", "file"), ("fsync", ".aside"), ("rename", "final"), ("fsync", tmp_path.name)]


def test_what_cannot_be_exchanged_is_told_apart_from_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError) as caught:
        exchange(tmp_path / "a", tmp_path / "absent")
    assert caught.value.errno == errno.ENOENT
    monkeypatch.setattr(folders.ctypes, "get_errno", lambda: errno.EINVAL)  # as NFS says it
    assert exchange(tmp_path / "a", tmp_path / "absent") is False
    monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: object())  # another system's C library
    assert exchange(tmp_path / "a", tmp_path / "absent") is False


NAMES = ("weights", "metrics.jsonl", "odd_*.json")


def never(folder: Path) -> bool:
    return False


@pytest.mark.parametrize("name", ["metrics.jsonl", "odd_7.json", "weights"])
def test_a_name_that_is_taken_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    taken = tmp_path / name / "thesis.txt" if name == "weights" else tmp_path / name
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=f"holds {name}, which train would replace and did not write; move it away"):
        claim(tmp_path, "train", NAMES, never)
    assert sorted(tmp_path.rglob("*")) == before and taken.read_text() == "mine"
    claim(tmp_path, "train", NAMES, lambda folder: True)
    assert noted(tmp_path, "train") == sorted(NAMES)


def test_other_files_and_empty_ones_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "weights").mkdir()
    claim(tmp_path, "train", NAMES, never)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_each_writer_has_a_list_of_its_own(tmp_path: Path) -> None:
    claim(tmp_path / "new" / "folder", "report", ["results.json"], never)
    folder = tmp_path / "new" / "folder"
    (folder / "results.json").write_text("{}")
    claim(folder, "report", ["results.json"], never)
    with pytest.raises(ConfigError, match=r"holds results\.json, which evaluate would replace"):
        claim(folder, "evaluate", ["results.json"], never)
    note(folder, "report", ["more.json"])
    assert json.loads((folder / RECORD).read_text()) == {
        "format": 1,
        "writes": {"report": ["more.json", "results.json"]},
    }


def test_a_later_version_that_writes_more_does_not_take_what_is_not_its_own(tmp_path: Path) -> None:
    claim(tmp_path, "train", ["weights"], never)
    (tmp_path / "curves.svg").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds curves\.svg"):
        claim(tmp_path, "train", ["weights", "curves.svg"], lambda folder: True)


def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("[]")
    with pytest.raises(ConfigError, match=r"\.medtune\.json cannot be read"):
        refuse_taken(tmp_path, "train", NAMES, never)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write into"):
        claim(tmp_path / "file" / "out", "train", NAMES, never)
