"""A check that is remembered finds at the next start what one from the beginning finds, and reads what has changed."""

import multiprocessing
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from medtune.data import preflight_record
from medtune.data.crops import CenterCropped
from medtune.data.items import SampleItems
from medtune.data.preflight import preflight
from medtune.data.preflight_record import SUFFIX, Record, Table
from medtune.data.source import JsonlSource
from medtune.datasets._mixture import MixtureSource
from medtune.errors import DataError
from tests.data.tools import LetterTransform, row, unchanged, write_pictures, write_rows


class Counted(SampleItems):
    """Items that tell which samples were measured."""

    asked: list[str] = []

    def measure(self, source, index, rng, transform):
        self.asked.append(source[index].id)
        return super().measure(source, index, rng, transform)


@pytest.fixture
def folder(tmp_path):
    """Ten rows of one image each, the last two of the same one, and one of none."""
    write_pictures(tmp_path / "images", 10)
    rows = [row(f"s{n}", f"report {n}", (f"{min(n, 8)}.png",)) for n in range(10)]
    write_rows(tmp_path / "a.jsonl", [*rows, row("text")])
    return tmp_path


def source_of(folder, root="images"):
    return JsonlSource(folder / "a.jsonl", folder / root)


def look(source, folder, on_error="skip", said=None, workers=0, key="one"):
    """A check with a record; its outcome, and the samples that it measured."""
    Counted.asked.clear()
    said = [] if said is None else said
    record = Record(folder / "cache", source.name, {"key": key, "data": source.fingerprint()}, said.append)
    found = preflight(
        source,
        LetterTransform(),
        lambda: [Counted(unchanged)],
        on_error,
        progress=False,
        num_workers=workers,
        record=record,
    )
    return found, list(Counted.asked)


def fresh(source):
    return preflight(source, LetterTransform(), lambda: [SampleItems(unchanged)], "skip", progress=False)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def touch(path, by=1):
    """Change the time of a file and nothing else."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + by))


def test_a_second_start_reads_no_row(folder):
    first, asked = look(source_of(folder), folder)
    assert len(asked) == 11
    said: list[str] = []
    again, asked = look(source_of(folder), folder, said=said)
    assert asked == [] and said == [] and same(again, first) and same(again, fresh(source_of(folder)))
    assert again.indices.dtype == first.indices.dtype and again.labelled.dtype == first.labelled.dtype


def remove(folder):
    (folder / "images/3.png").unlink()


def replace_by_larger(folder):
    Image.new("RGB", (60, 60)).save(folder / "images/3.png")


def damage(folder):
    path = folder / "images/3.png"
    path.write_bytes(path.read_bytes()[:-40])


def same_size(folder):
    """Another picture in a file of as many bytes, which only the time tells."""
    path = folder / "images/3.png"
    whole = bytearray(path.read_bytes())
    whole[19] = 90  # the width, in the header
    path.write_bytes(bytes(whole))
    touch(path)


def an_old_file(folder):
    """Another picture that is older than the first."""
    Image.new("RGB", (60, 61)).save(folder / "images/3.png")
    os.utime(folder / "images/3.png", ns=(10**15, 10**15))


@pytest.mark.parametrize("change", [remove, replace_by_larger, damage, same_size, an_old_file])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_changed_is_found(folder, change, workers):
    look(source_of(folder), folder)
    change(folder)
    said: list[str] = []
    found, asked = look(source_of(folder), folder, said=said, workers=workers)
    assert same(found, fresh(source_of(folder)))
    if workers == 0:
        assert asked == ["s3"]
    assert said == [
        "check a: 1 of 9 image files were added, removed or changed since the last start; reading 1 of 11 rows"
    ]
    _, asked = look(source_of(folder), folder, said=said)
    assert asked == [] and len(said) == 1, "what was found anew is remembered too"


def test_an_image_that_vanished_stops_the_run_and_may_come_back(folder):
    first, _ = look(source_of(folder), folder)
    (folder / "images/8.png").rename(folder / "8.png")
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 11 rows(?s:.*)line 9 .*8.png is not in(?s:.*)line 10 "):
            look(source_of(folder), folder, "raise")
    (folder / "8.png").rename(folder / "images/8.png")
    found, asked = look(source_of(folder), folder, "raise")
    assert asked == ["s8", "s9"] and same(found, first)


def test_problems_are_remembered(folder):
    (folder / "images/2.png").unlink()
    first, _ = look(source_of(folder), folder)
    again, asked = look(source_of(folder), folder)
    assert asked == [] and same(again, first)
    assert [problem.id for problem in again.problems] == ["s2"] and again.usable.startswith("10 of 11 rows (")
    with pytest.raises(DataError, match=r"1 of 11 rows"):
        look(source_of(folder), folder, "raise")


def test_a_check_that_decodes_believes_no_record(folder):
    look(source_of(folder), folder)
    path = folder / "images/5.png"
    stamp, data = path.stat(), bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 6
    data[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert look(source_of(folder), folder, "raise")[1] == [], "same size and time"
    record = Record(folder / "cache", "a", {"key": "one", "data": source_of(folder).fingerprint()})
    with pytest.raises(DataError, match="5.png is truncated or damaged"):
        preflight(
            source_of(folder),
            LetterTransform(),
            lambda: [SampleItems(unchanged)],
            progress=False,
            decode=True,
            record=record,
        )


def test_other_data_are_read(folder):
    look(source_of(folder), folder)
    write_rows(folder / "a.jsonl", [row("other", "x", ("1.png",))])
    found, asked = look(source_of(folder), folder)
    assert asked == ["other"] and len(found.indices) == 1
    _, asked = look(source_of(folder), folder, key="another transform")
    assert asked == ["other"]
    _, asked = look(source_of(folder), folder)
    assert asked == [], "one record does not push out another"


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def emptied(path):
    path.write_bytes(b"")


def of_another(path):
    (other,) = {*path.parent.glob(f"*{SUFFIX}")} - {path}
    shutil.copy(other, path)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [torn, flipped, emptied, of_another, a_folder])
def test_a_record_that_cannot_be_used_is_ignored_with_a_line(folder, harm):
    first, _ = look(source_of(folder), folder)
    (path,) = (folder / "cache").glob(f"*{SUFFIX}")
    look(source_of(folder), folder, key="another")
    harm(path)
    said: list[str] = []
    found, asked = look(source_of(folder), folder, said=said)
    assert len(asked) == 11 and same(found, first)
    assert said[0].startswith(f"check a: what {path} remembers cannot be used (") and "reading all rows" in said[0]
    if harm is not a_folder:
        assert len(said) == 1 and look(source_of(folder), folder)[1] == []


def test_a_record_of_another_number_of_rows_is_not_used(folder):
    record = Record(folder, "a", {}, (said := []).append)
    record.save(Table(np.zeros((3, 7)), {}, np.zeros(3), np.zeros(0), np.zeros((0, 2)), []))
    assert record.load(3) is not None and said == []
    assert record.load(4) is None and "its parts do not fit together" in said[0]


def test_a_folder_that_cannot_be_written_to_stops_nothing(folder):
    (folder / "cache").write_text("a file")
    said: list[str] = []
    found, asked = look(source_of(folder), folder, said=said)
    assert len(asked) == 11 and len(found.indices) == 11
    assert f"check a: the outcome cannot be kept in {folder / 'cache'}" in said[-1]


def test_what_a_record_holds_is_no_code_and_nobody_elses_business(folder):
    look(source_of(folder), folder)
    (path,) = (folder / "cache").glob("*")
    assert path.suffix == SUFFIX and b"report 3" not in path.read_bytes()
    assert (folder / "cache").stat().st_mode & 0o077 == 0


def test_records_that_nobody_used_for_long_go_away(folder, monkeypatch):
    monkeypatch.setattr(preflight_record, "KEPT_RECORDS", 2)
    for number, key in enumerate(("first", "second", "third", "first")):
        look(source_of(folder), folder, key=key)
        for path in (folder / "cache").glob("*"):
            touch(path, by=-(10**9))
        if number == 1:
            assert look(source_of(folder), folder, key="first")[1] == [], "used last, so it stays"
    assert len(list((folder / "cache").glob("*"))) == 2
    assert look(source_of(folder), folder, key="first")[1] == [] != look(source_of(folder), folder, key="second")[1]


def test_images_in_a_tar_are_as_old_as_the_tar(folder):
    def pack():
        with tarfile.open(folder / "images.tar", "w") as archive:
            archive.add(folder / "images", arcname=".")

    pack()
    first, asked = look(source_of(folder, "images.tar"), folder)
    assert len(asked) == 11 and look(source_of(folder, "images.tar"), folder)[1] == []
    replace_by_larger(folder)
    assert look(source_of(folder, "images.tar"), folder)[1] == []
    pack()
    touch(folder / "images.tar")
    found, asked = look(source_of(folder, "images.tar"), folder)
    assert len(asked) == 10 and "text" not in asked, "all rows that have an image"
    assert same(found, fresh(source_of(folder, "images.tar"))) and not same(found, first)


def test_sources_of_sources_know_their_images(folder):
    write_pictures(folder / "others", 3)
    other = JsonlSource(write_rows(folder / "b.jsonl", [row("x", "y", ("2.png", "../out.png"))]), folder / "others")
    both = MixtureSource([(CenterCropped(source_of(folder), 0.5), 1.0), (other, 1.0)], 0)
    assert both.image_roots() == [str(folder / "images"), str(folder / "others")]
    assert both.image_files(both[11]) == [str(folder / "others/2.png")], "what leads out of the root is not asked"
    first, _ = look(both, folder)
    again, asked = look(both, folder)
    assert asked == [] and same(again, first) and [problem.id for problem in first.problems] == ["b/x"]
    replace_by_larger(folder)
    found, asked = look(both, folder)
    assert asked == ["a/s3"] and found.tiles[3] == 4, "30 x 30 pixels"


def test_a_source_that_does_not_know_its_images_is_read_each_time(folder):
    class Drawn:
        name = "drawn"

        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            return self.source[index]

        def image_sizes(self, sample):
            return [(9, 9)]

        def fingerprint(self):
            return "drawn"

    drawn = Drawn(source_of(folder))
    assert len(look(drawn, folder)[1]) == len(look(drawn, folder)[1]) == 11
    assert MixtureSource([(drawn, 1.0), (source_of(folder), 1.0)], 0).image_roots() is None
    assert not (folder / "cache").exists()


def test_rows_depend_on_every_image_that_was_looked_at(folder):
    class Neighbour(SampleItems):
        """Items that look at the next sample's image too, as a negative does."""

        def measure(self, source, index, rng, transform):
            (size,) = super().measure(source, index, rng, transform)
            ((width, _),) = source.image_sizes(source[(index + 1) % 10]) or [(0, 0)]
            return (size._replace(tokens=width),)

    def lengths():
        record = Record(folder / "cache", "a", {})
        items = lambda: [Neighbour(unchanged)]  # noqa: E731
        return preflight(source_of(folder), LetterTransform(), items, progress=False, record=record).lengths.tolist()

    before = lengths()
    replace_by_larger(folder)
    assert lengths() == [*before[:2], 60, *before[3:]]


def test_a_file_that_changed_while_rows_were_read_is_read_again(folder):
    class Changing(SampleItems):
        def measure(self, source, index, rng, transform):
            if source[index].id == "s9":
                touch(folder / "images/8.png")
            return super().measure(source, index, rng, transform)

    record = Record(folder / "cache", "a", {}, (said := []).append)
    for _ in range(2):
        preflight(source_of(folder), LetterTransform(), lambda: [Changing(unchanged)], progress=False, record=record)
    assert len(said) == 1 and "reading 2 of 11 rows" in said[0]


def test_two_processes_at_once_leave_a_whole_record(folder):
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def many():
        start.wait()
        for _ in range(15):
            record = Record(folder / "cache", "a", {"key": "one"})
            record.save(record.load(11) or table)

    look(source_of(folder), folder)
    (path,) = (folder / "cache").glob("*")
    made_of = {"key": "one", "data": source_of(folder).fingerprint()}
    table = Record(folder / "cache", "a", made_of).load(11)
    path.unlink()
    children = [context.Process(target=many) for _ in range(2)]
    for child in children:
        child.start()
    start.set()
    while any(child.is_alive() for child in children):
        found = Record(folder / "cache", "a", {"key": "one"}, pytest.fail).load(11)
        assert found is None or found.names == table.names
    assert [child.exitcode for child in children] == [0, 0]
    assert len(list((folder / "cache").iterdir())) == 1, "nothing is left beside it"
