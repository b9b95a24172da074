import pytest

from medtune.data.items import SampleItems
from medtune.data.preflight import preflight
from medtune.data.source import JsonlSource
from medtune.errors import DataError
from tests.data.tools import LetterTransform, row, unchanged, write_pictures, write_rows


def plain():
    return [SampleItems(unchanged)]


@pytest.fixture
def source(tmp_path):
    write_pictures(tmp_path / "images", 20)
    whole = (tmp_path / "images/7.png").read_bytes()
    (tmp_path / "images/7.png").write_bytes(whole[:-40])
    question = {"id": "question", "messages": [{"role": "user", "content": "why?"}]}
    rows = [
        row("good", "abc", ("0.png", "17.png")),
        row("absent", images=("none.png",)),
        row("text", "ab"),
        row("empty", " "),
        row("good"),
        row("outside", images=("../a.jsonl",)),
        row("long", "x" * 201),
        row("cut", images=("7.png",)),
        "{",
        question,
        row("limit", "x" * 200, ("3.png",)),
    ]
    return JsonlSource(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "images")


def test_every_problem_is_counted_in_one_message(source):
    with pytest.raises(DataError) as caught:
        preflight(source, LetterTransform(), plain, progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "8 of 11 rows of a cannot be used:"
    assert lines[-1].endswith("or set on_error: skip to leave them out and list them in the run's summary.")
    for number, said in enumerate(
        [
            "a.jsonl, line 2 (id 'absent'): the image none.png is not in",
            "a.jsonl, line 4 (id 'empty'), message 1: the report or answer is empty",
            "a.jsonl, line 5: the id 'good' is also that of a.jsonl, line 1",
            "a.jsonl, line 6 (id 'outside'): the image path '../a.jsonl' leaves the image root",
            "a.jsonl, line 7 (id 'long'): 201 tokens, the limit is 200; shorten the text",
            "a.jsonl, line 8 (id 'cut'): the image 7.png is truncated",
            "a.jsonl, line 9: this is not valid JSON",
            "a.jsonl, line 10 (id 'question'): no assistant message",
        ],
        start=1,
    ):
        assert said in lines[number]


def test_skipping_leaves_the_rest_and_lists_the_others(source):
    found = preflight(source, LetterTransform(), plain, "skip", progress=False)
    assert found.indices.tolist() == [0, 2, 10]
    assert found.lengths.tolist() == [3, 2, 200]
    assert found.tiles.tolist() == [1 + 3, 0, 2]
    assert [problem.id for problem in found.problems] == [
        "absent", "row 4", "row 5", "outside", "long", "cut", "row 9", "question",
    ]  # fmt: skip


def test_only_ten_problems_are_printed(tmp_path):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", [row(str(n), " ") for n in range(30)] + [row("x")]), None)
    with pytest.raises(DataError, match=r"30 of 31 rows(?s:.*)and 20 more") as caught:
        preflight(source, LetterTransform(), plain, progress=False)
    assert str(caught.value).count("is empty") == 10


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", [row("a", " ")]), None)
    with pytest.raises(DataError, match="1 of 1 rows"):
        preflight(source, LetterTransform(), plain, "skip", progress=False)


def test_damage_inside_an_image_is_found_when_decoding(tmp_path):
    folder = write_pictures(tmp_path / "images", 2)
    data = bytearray((folder / "1.png").read_bytes())
    at = data.index(b"IDAT") + 6
    data[at : at + 4] = b"\0\0\0\0"
    (folder / "1.png").write_bytes(bytes(data))
    rows = [row("a", images=("0.png",)), row("b", images=("1.png",))]
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", rows), folder)
    assert len(preflight(source, LetterTransform(), plain, progress=False).indices) == 2
    with pytest.raises(DataError, match="line 2 .*1.png is truncated or damaged"):
        preflight(source, LetterTransform(), plain, progress=False, decode=True)
