import os
from pathlib import Path

from medtune.data import identity
from medtune.data.identity import Difference, differences, file_identity, files_identity, named_paths, short
from medtune.data.writing import sha256


def test_leaves_that_differ_are_named_by_their_path() -> None:
    saved = {"model": {"layers": 2, "old": 1}, "trainable": ["vision"], "seed": 1, "same": {"a": [1, 2]}}
    current = {"model": {"layers": 3, "new": None}, "trainable": ["vision", "fusion"], "seed": 1, "same": {"a": (1, 2)}}
    assert [str(found) for found in differences(saved, current)] == [
        "model.layers: 2 there, 3 here",
        "model.old: 1 there, absent here",
        "model.new: absent there, null here",
        'trainable: ["vision"] there, ["vision", "fusion"] here',
    ]


def test_keys_choose_the_top_level_alone() -> None:
    saved, current = {"a": {"x": 1}, "b": 1}, {"a": {"y": 1}, "c": 1}
    assert [found.key for found in differences(saved, current, keys=saved.keys() & current.keys())] == ["a.x", "a.y"]
    assert [found.key for found in differences(saved, current)] == ["a.x", "a.y", "b", "c"]


def test_null_may_stand_for_absent() -> None:
    assert differences({"a": {"x": None}}, {"a": {}}, null_is_absent=True) == []
    assert differences({"a": {"x": None}}, {"a": {}}) == [Difference("a.x", "null", "absent")]
    assert differences({}, {"a": 0}, null_is_absent=True) == [Difference("a", "null", "0")]


def test_a_tree_against_a_leaf_and_true_against_one() -> None:
    (found,) = differences({"tsm": None}, {"tsm": {"weights": "w"}})
    assert str(found) == 'tsm: null there, {"weights": "w"} here'
    assert differences({"a": 1}, {"a": 1.0}) == []


def test_short_values() -> None:
    assert short("a1" * 32) == "a1a1a1a1a1a1..." and short("z" * 64) == "z" * 57 + "..." and short("text") == "text"
    assert short(list(range(100))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch) -> None:
    read = []
    original = identity.file_sha256
    monkeypatch.setattr(identity, "file_sha256", lambda path: read.append(path) or original(path))
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert file_identity(path) == file_identity(str(path)) == sha256(b"one") and len(read) == 1
    path.write_bytes(b"two")  # of the same size; its time may be the same on a coarse clock
    os.utime(path, ns=(1, 1))
    assert file_identity(path) == sha256(b"two")
    (tmp_path / "b").write_bytes(b"two")
    assert files_identity({"x": tmp_path / "b"}) == {"x": sha256(b"two")}


def test_paths_are_found_however_deep_and_texts_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    node = {
        "source": [str(tmp_path / "file"), {"root": str(tmp_path)}],
        "text": "word " * 2000,
        "nul": "a\0b",
        "user": "~nobody-of-that-name/x",
        "none": None,
        "empty": "",
    }
    assert list(named_paths(node, "dataset")) == [
        ("dataset.source.0", tmp_path / "file"),
        ("dataset.source.1.root", tmp_path),
    ]
