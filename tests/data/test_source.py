import json
import pickle
import tracemalloc

import pytest

from medtune.data.source import JsonlSource, SampleSource, json_objects, place
from medtune.errors import DataError
from tests.data.tools import row, write_pictures, write_rows


def test_rows_come_one_at_a_time(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [row("a"), "", row("b", "Größe"), "   ", row("c")])
    source = JsonlSource(path, None)
    assert isinstance(source, SampleSource)
    assert (source.name, len(source)) == ("train", 3)
    assert [source[index].id for index in (2, 0, 1)] == ["c", "a", "b"]
    assert source[1].messages[0].content == "Größe"
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


def test_a_last_line_without_end_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\ufeff" + json.dumps(row("a")) + "\r\n" + json.dumps(row("b"))).encode())
    assert [sample.id for sample in (JsonlSource(path, None)[0], JsonlSource(path, None)[1])] == ["a", "b"]


def test_duplicate_ids_are_refused_with_both_rows(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [row("x"), "", row("y"), row("x")])
    source = JsonlSource(path, None)
    assert source[0].id == "x"
    with pytest.raises(DataError, match=r"train.jsonl, line 4: the id 'x' is also that of train.jsonl, line 1"):
        source[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "b", ', "line 2: this is not valid JSON"),
        ("[" * 100_000, "line 2: this is not valid JSON"),
        ("7", "line 2: a row must be a JSON object"),
        (json.dumps(row("b", " ")), r"line 2 \(id 'b'\), message 1: the report or answer is empty"),
    ],
)
def test_a_broken_row_is_named_and_the_others_stay(tmp_path, line, said):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", [row("a"), line, row("c")]), None)
    assert (source[0].id, source[2].id) == ("a", "c")
    with pytest.raises(DataError, match=said):
        source[1]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(row("a")).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: this is not UTF-8"):
        JsonlSource(path, None)[1]


def test_images_are_named_by_row(tmp_path):
    write_pictures(tmp_path / "images", 2)
    rows = [row("a", images=("0.png", "1.png")), row("b", images=("2.png",))]
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "images")
    assert [image.getpixel((0, 0)) for image in source.open_images(source[0])] == [(0, 0, 0), (1, 1, 1)]
    assert source.image_sizes(source[0]) == [(16, 16), (17, 16)]
    for read in (source.open_images, source.image_sizes):
        with pytest.raises(DataError, match=r"a.jsonl, line 2 \(id 'b'\): the image 2.png is not in"):
            read(source[1])
    assert place(source, source[1]) == "a.jsonl, line 2 (id 'b')"


def test_images_without_a_root(tmp_path):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", [row("a", images=("0.png",))]), None)
    with pytest.raises(DataError, match="no image_root was given; set it"):
        source.open_images(source[0])


def test_absent_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        JsonlSource(tmp_path / "none.jsonl", None)
    with pytest.raises(DataError, match="holds no row"):
        JsonlSource(write_rows(tmp_path / "a.jsonl", [""]), None)


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    first = JsonlSource(write_rows(tmp_path / "a.jsonl", [row("a")]), None).fingerprint()
    assert first == JsonlSource(write_rows(tmp_path / "b.jsonl", [row("a")]), None).fingerprint()
    assert first != JsonlSource(write_rows(tmp_path / "b.jsonl", [row("b")]), None).fingerprint()


def test_memory_does_not_grow_with_what_the_rows_hold(tmp_path):
    count, text = 4000, "a long report " * 100
    path = write_rows(tmp_path / "a.jsonl", [row(str(number), text) for number in range(count)])
    assert path.stat().st_size > count * 1400
    tracemalloc.start()
    source = JsonlSource(path, None)
    built, peak = tracemalloc.get_traced_memory()
    for index in range(0, count, 2):
        source[index]
    half, _ = tracemalloc.get_traced_memory()
    for index in range(1, count, 2):
        source[index]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert built < count * 60 and peak < count * 150, "about forty bytes a row, and no list of rows on the way"
    assert after - half < 20_000, "reading a row must leave nothing behind"
    assert len(pickle.dumps(source)) < count * 60


def test_objects_of_a_json_array_without_loading_it(tmp_path, monkeypatch):
    rows = [
        {"id": number, "text": 'brackets ]}{[ and "quotes" \\ ü ' * number, "deep": [{"a": [1]}]}
        for number in range(80)
    ]
    for indent in (None, 2):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        data = path.read_bytes()
        assert [json.loads(data[start:end]) for start, end in json_objects(path)] == rows


@pytest.mark.parametrize(("text", "said"), [('{"a": []}', "must be a JSON array"), ('[{"a": 1}, {"b', "is truncated")])
def test_json_that_is_no_array(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        list(json_objects(path))
