import os
import re
from pathlib import Path

import pytest

from medtune.data import writing
from medtune.data.sample import Sample
from medtune.data.source import JsonlSource
from medtune.data.writing import Content, jsonl_bytes, sha256, write_files
from medtune.errors import DataError
from tests.data.tools import row


def test_what_is_written_is_read_back(tmp_path):
    samples = [Sample.from_dict(row(id, "Größe\u2028 {}"), "") for id in ("a", "b")]
    write_files(tmp_path, {"a.jsonl": jsonl_bytes(samples)}, overwrite=False)
    source = JsonlSource(tmp_path / "a.jsonl", None)
    assert [source[0], source[1]] == samples


def test_only_different_files_are_in_the_way(tmp_path):
    files = {"a": b"1", "b": b"2", "manifest.json": b"m"}
    assert write_files(tmp_path / "out", files, overwrite=False) == ["a", "b", "manifest.json"]
    assert write_files(tmp_path / "out", files, overwrite=False) == []
    (tmp_path / "out/own.txt").write_text("mine")
    changed = {"a": b"1", "b": b"3", "manifest.json": b"n"}
    with pytest.raises(
        DataError, match="already holds a different b; choose another output_dir, or set overwrite=true"
    ):
        write_files(tmp_path / "out", changed, overwrite=False, free=["manifest.json"])
    assert (tmp_path / "out/b").read_bytes() == b"2" and (tmp_path / "out/manifest.json").read_bytes() == b"m"
    assert write_files(tmp_path / "out", changed, overwrite=True) == ["b", "manifest.json"]
    assert (tmp_path / "out/own.txt").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_files(tmp_path, {"a": b"old"}, overwrite=False)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(DataError, match="Cannot write into .*No space left"):
        write_files(tmp_path, {"a": b"new"}, overwrite=True)
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="Cannot write into"):
        write_files(tmp_path / "file/out", {"a": b"1"}, overwrite=False)


def test_a_file_larger_than_the_memory_is_written_block_by_block(tmp_path):
    blocks = [bytes([number]) * 1000 for number in range(50)]
    content = Content(50_000, sha256(b"".join(blocks)), lambda: iter(blocks))
    assert write_files(tmp_path, {"a": content}, overwrite=False) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"".join(blocks)
    assert write_files(tmp_path, {"a": content}, overwrite=False) == []
    assert write_files(tmp_path, {"a": b"".join(blocks)}, overwrite=False) == []


def test_blocks_that_are_not_what_was_announced_leave_the_old_file(tmp_path):
    write_files(tmp_path, {"a": b"old"}, overwrite=False)
    with pytest.raises(DataError, match="a: the data it is made of changed while it was written"):
        write_files(tmp_path, {"a": Content(3, sha256(b"new"), lambda: iter([b"odd"]))}, overwrite=True)
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_file_has_the_rights_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        with writing.replaced(tmp_path / "a") as aside:
            aside.unlink()
            os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors makes it
        writing.write_whole(tmp_path / "b", "\u00e4")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    assert (tmp_path / "b").read_bytes() == "\u00e4".encode()


def test_an_error_on_the_way_leaves_the_old_file(tmp_path):
    writing.write_whole(tmp_path / "a", "old")
    with pytest.raises(KeyError), writing.replaced(tmp_path / "a") as aside:
        aside.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        writing.os, "fsync", lambda number: seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
    )
    with writing.replaced(tmp_path / "a") as aside:
        aside.write_text("new")
        assert not seen and not (tmp_path / "a").exists()
    assert len(seen) == 1 and seen[0].startswith(".a.")


ONE_OF_EACH = {
    "data/writing.py",
    "data/folders.py",
    "data/locks.py",
    "data/append.py",
    "evaluation/prediction.py",
    "clients/cache.py",
}


def test_files_are_replaced_and_locked_in_one_place():
    """A new copy of write-aside-and-rename, or of a lock, goes into the modules that have it."""
    root = Path(writing.__file__).parents[1]
    own = re.compile(r"\bos\.(replace|rename|fsync)\b|\bfcntl\b|\.rename\(|\baside\.replace\(")
    found = {
        str(path.relative_to(root)) for path in [*root.rglob("*.py")] if own.search(path.read_text(encoding="utf-8"))
    }
    assert found <= ONE_OF_EACH
