"""JSON that users bring."""

import json
import time

import pytest

from medtune.data import json_text
from medtune.data.json_text import decode_json, json_objects
from medtune.errors import DataError


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"n": ' + b"1" * 5000 + b"}", "a number has too many digits"),
        (b'{"text": "a \\ud800 b"}', "half of a character"),
        (b'{"\\udc00": 1}', "half of a character"),
        (b"\xff", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_usable_json_is_refused_by_row(raw, said):
    with pytest.raises(DataError, match=f"f, line 1: .*{said}"):
        decode_json(raw, "f, line 1")


def test_a_whole_pair_of_surrogates_is_a_character():
    assert decode_json(b'"\\ud83d\\ude00 \\\\ud800"', "f") == "\U0001f600 \\ud800"


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_objects_are_found_whatever_the_size_of_the_blocks(tmp_path, monkeypatch, block):
    rows = [{"a": text} for text in ("", "x\\", '\\"]', '"', "\\\\", "[{", "\\" * 5 + '"}', "ü")]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    monkeypatch.setattr(json_text, "_BLOCK", block)
    data = path.read_bytes()
    assert [json.loads(data[start:end]) for start, end in json_objects(path)] == rows


@pytest.mark.parametrize("inner", [b"x", b"\\\\", b"\\"])
def test_a_string_that_is_never_closed_is_read_once(tmp_path, inner):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"b": "' + inner * (40_000_000 // len(inner)))
    start = time.perf_counter()
    with pytest.raises(DataError, match="is truncated"):
        list(json_objects(path))
    assert time.perf_counter() - start < 10, "40 blocks that are each read once take a second"
