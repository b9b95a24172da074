"""The table of a check's record: file stamps, names of any bytes, rows that saw a file differently."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medtune.data import preflight_record
from medtune.data.preflight_record import Record, Table, file_stamps
from tests.data.tools import write_pictures


@pytest.fixture
def folder(tmp_path):
    """Ten images."""
    write_pictures(tmp_path / "images", 10)
    return tmp_path


def test_stamps_of_many_files_in_threads_or_not(folder, monkeypatch):
    names = [os.fsencode(folder / f"images/{number % 12}.png") for number in range(50)]
    plain = file_stamps(names)
    assert plain.tolist()[10:12] == [[-1, -1]] * 2 and plain[0].tolist() == plain[12].tolist()
    status = (folder / "images/1.png").stat()
    assert plain[1].tolist() == [status.st_size, status.st_mtime_ns]
    monkeypatch.setattr(preflight_record, "_CHUNK", 4)
    assert np.array_equal(file_stamps(names), plain)
    monkeypatch.setattr(preflight_record, "_SLOW_STAT", -1.0)
    assert np.array_equal(file_stamps(names), plain)
    assert file_stamps([]).shape == (0, 2)
    assert file_stamps([b"a\0b", b"x" * 5000]).tolist() == [[-1, -1]] * 2


def test_names_that_are_not_utf8_or_stand_alone(tmp_path):
    for names in ([b"/a/\xff\xfe.png", b"/a/b.png"], [b"/only"], []):
        count = len(names)
        table = Table.of(np.zeros((1, 7)), {}, np.array([count]), names, np.arange(2 * count).reshape(-1, 2))
        record = Record(Path(tmp_path), "x", {"names": json.dumps(len(names))}, pytest.fail)
        record.save(table)
        found = record.load(1)
        assert found.names == table.names and found.stamps.tolist() == table.stamps.tolist()
        assert sorted(table.names) == sorted(names)


def test_a_file_that_two_rows_saw_differently_counts_as_changed():
    """Of several processes a later row may have seen the older file."""
    stamps = np.array([[3, 9], [5, 7], [3, 8], [5, 7]])
    table = Table.of(np.zeros((3, 7)), {}, np.array([2, 1, 1]), [b"/a", b"/b", b"/a", b"/b"], stamps)
    found = dict(zip(table.names, table.stamps.tolist(), strict=True))
    assert found[b"/b"] == [5, 7] and found[b"/a"] not in ([3, 9], [3, 8], [-1, -1])
    assert table.rows_of(np.array([name == b"/a" for name in table.names])).tolist() == [0, 1]
