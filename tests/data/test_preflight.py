import dataclasses

import numpy as np
import pytest

from medtune.data.items import Row, SampleItems
from medtune.data.preflight import preflight
from medtune.data.randomness import sample_rng
from medtune.data.source import JsonlSource
from medtune.errors import ConfigError, DataError
from tests.data.tools import LetterTransform, row, shuffle_letters, unchanged, write_pictures, write_rows


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


@pytest.mark.parametrize("decode", [False, True])
def test_damage_inside_a_png_is_found(tmp_path, decode):
    folder = write_pictures(tmp_path / "images", 2)
    data = bytearray((folder / "1.png").read_bytes())
    at = data.index(b"IDAT") + 6
    data[at : at + 4] = b"\0\0\0\0"
    (folder / "1.png").write_bytes(bytes(data))
    rows = [row("a", images=("0.png",)), row("b", images=("1.png",))]
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", rows), folder)
    with pytest.raises(DataError, match="line 2 .*1.png is truncated or damaged"):
        preflight(source, LetterTransform(), plain, progress=False, decode=decode)


class Pairs(SampleItems):
    """Items of two rows and one that each epoch draws: the report, the report twice, a long one drawn."""

    def measure(self, source, index, rng, transform):
        (size,) = super().measure(source, index, rng, transform)
        twice = 2 * size.tokens
        if twice > transform.max_seq_len:
            raise DataError(f"{source.where(source[index])}: the second row is too long")
        return size, Row(twice, 3, 5), Row(150 + rng.randrange(9), 1, 9, drawn=True)


def test_every_row_of_an_item_is_measured(tmp_path):
    source = JsonlSource(
        write_rows(tmp_path / "a.jsonl", [row("a", "abcd"), row("b", "x" * 120), row("c", "yz")]), None
    )
    both = lambda: [Pairs(unchanged), SampleItems(unchanged)]  # noqa: E731
    with pytest.raises(DataError, match=r"1 of 3 rows(?s:.*)line 2 \(id 'b'\): the second row is too long"):
        preflight(source, LetterTransform(), both, progress=False)
    found = preflight(source, LetterTransform(), both, "skip", progress=False, seed=4)
    assert found.indices.tolist() == [0, 2] and found.usable.startswith("2 of 3 rows (")
    assert found.lengths.tolist() == [8, 4], "the longest row that every epoch has"
    assert found.tiles.tolist() == [5, 5] and found.most_tiles.tolist() == [9, 9]
    drawn = [150 + sample_rng(4, 0, index).randrange(9) for index in (0, 2)]
    assert found.longest.tolist() == drawn, "drawn as the first epoch draws it"
    assert found.supervised.tolist() == [4 + 3, 2 + 3]
    assert found.labelled.tolist() == [False, False]


def test_items_of_the_same_kind_are_measured_once(source):
    asked = []

    class Counted(SampleItems):
        def measure(self, source, index, rng, transform):
            asked.append(index)
            return super().measure(source, index, rng, transform)

    preflight(source, LetterTransform(), lambda: [Counted(unchanged), Counted(unchanged)], "skip", progress=False)
    assert asked == [index for index in range(11) if index not in (3, 4, 8)], "those that are samples, once each"


def test_a_sample_and_its_headers_are_read_once_for_several_stages(source, monkeypatch):
    read = []
    monkeypatch.setattr(JsonlSource, "image_sizes", lambda self, sample: read.append(sample.id) or [(16, 16)])
    stages = lambda: [SampleItems(unchanged), SampleItems(shuffle_letters)]  # noqa: E731
    preflight(source, LetterTransform(), stages, "skip", progress=False)
    assert len(read) == len(set(read)) and "good" in read


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.fixture
def many(tmp_path):
    """300 rows, three blocks, every seventh without its image, the last two not even samples."""
    folder = write_pictures(tmp_path / "images", 40)
    rows = [row(str(n), "x" * (n % 30 + 1), (f"{'none' if n % 7 == 0 else n % 40}.png",)) for n in range(298)]
    return JsonlSource(write_rows(tmp_path / "many.jsonl", [*rows, "{", row("3")]), folder)


def test_any_number_of_processes_finds_the_same(many):
    alone = preflight(many, LetterTransform(), plain, "skip", progress=False)
    assert len(alone.indices) == 298 - 43 and len(alone.problems) == 45
    assert [problem.id for problem in alone.problems[-3:]] == ["294", "row 299", "row 300"]
    with pytest.raises(DataError) as refused:
        preflight(many, LetterTransform(), plain, progress=False)
    for workers in (1, 2):
        assert same(preflight(many, LetterTransform(), plain, "skip", False, num_workers=workers), alone)
        with pytest.raises(DataError) as also:
            preflight(many, LetterTransform(), plain, progress=False, num_workers=workers)
        assert str(also.value) == str(refused.value)


def test_an_error_of_another_kind_comes_from_a_worker_as_it_is(many):
    class Refused(SampleItems):
        def measure(self, source, index, rng, transform):
            raise ConfigError("a key is wrong")

    for workers in (0, 2):
        with pytest.raises(ConfigError, match="^a key is wrong$"):
            preflight(many, LetterTransform(), lambda: [Refused(unchanged)], num_workers=workers, progress=False)


def test_which_rows_are_usable_is_told_apart(tmp_path):
    """As many rows, but others."""
    told = set()
    for number, bad in enumerate((0, 1, 2)):
        rows = [row(letter, " " if at == bad else "clear") for at, letter in enumerate("abc")]
        source = JsonlSource(write_rows(tmp_path / f"{number}.jsonl", rows), None)
        told.add(preflight(source, LetterTransform(), plain, "skip", progress=False).usable)
    assert len(told) == 3


def test_other_images_under_the_same_id_are_read_too(tmp_path):
    class Others(SampleItems):
        """Items of the sample's own image, and of the same sample with another one."""

        def measure(self, source, index, rng, transform):
            sample = source[index]
            ((own, _),) = source.image_sizes(sample)
            ((other, _),) = source.image_sizes(dataclasses.replace(sample, images=("9.png",)))
            return Row(own, 1, 1), Row(other, 1, 1)

    source = JsonlSource(
        write_rows(tmp_path / "a.jsonl", [row("a", "x", ("3.png",))]), write_pictures(tmp_path / "i", 10)
    )
    assert preflight(source, LetterTransform(), lambda: [Others(unchanged)], progress=False).lengths.tolist() == [25]
