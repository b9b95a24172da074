"""Pickles of plain values are read; a pickle that does anything else is refused before any of it runs."""

import collections
import datetime
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune.data import plain_pickle
from medtune.data.plain_pickle import read_plain_pickle
from medtune.errors import DataError

VALUE = [
    {"img_id": "train_0001", "label": {"in the liver": 1, "yes": 0.3}, "n": (1, -2, 3, 4), "x": [None, True, "肝"]}
] * 3


class Runs:
    """Calls a function of another module when it is unpickled."""

    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


def write(folder: Path, content: bytes) -> Path:
    path = folder / "qas.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_are_read(protocol, tmp_path):
    assert read_plain_pickle(write(tmp_path, pickle.dumps(VALUE, protocol))) == VALUE


def test_texts_of_python_2_are_read(tmp_path):
    content = b"(dp0\nS'sent'\np1\nS'Where is it?'\np2\ns."
    assert read_plain_pickle(write(tmp_path, content)) == {"sent": "Where is it?"}
    assert read_plain_pickle(write(tmp_path, b"\x80\x02U\x05caf\xc3\xa9q\x00.")) == "caf\u00e9"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(protocol, tmp_path):
    mark = tmp_path / "ran"
    for call, told in (
        (os.system, (f"touch {mark}",)),
        (os.mkdir, (str(mark),)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
    ):
        content = pickle.dumps([{"sent": "a"}, Runs(call, *told)], protocol)
        with pytest.raises(DataError, match=r"qas\.pkl holds objects of a class, or calls of a function.*run any code"):
            read_plain_pickle(write(tmp_path, content))
        assert not mark.exists()
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(mark)), protocol))
    assert mark.exists()  # the same pickle runs where it is not refused


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1),
        collections.Counter("a"),
        datetime.date(2026, 1, 1),
        np.float64(1.0),
        np.zeros(2),
        Path("a"),
        {1, 2},
        frozenset("a"),
        b"bytes",
        bytearray(b"a"),
        1j,
        len,
        int,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_values_that_are_not_plain_are_refused(value, protocol, tmp_path):
    with pytest.raises(DataError, match="only lists, dicts, tuples, texts and numbers"):
        read_plain_pickle(write(tmp_path, pickle.dumps([value], protocol)))


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"Pid\n.",
        b"\x80\x02U\x02idQ.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}K\x01b.",
    ],
    ids=["global", "instance", "stack global", "persistent id", "binary persistent id", "extension", "build"],
)
def test_every_instruction_that_reaches_an_object_is_refused(content, tmp_path):
    with pytest.raises(DataError, match="qas.pkl holds"):
        read_plain_pickle(write(tmp_path, content))


def test_the_second_line_of_defence_holds_alone(tmp_path, monkeypatch):
    """Should an instruction slip through the first."""
    monkeypatch.setattr(plain_pickle, "_check", lambda *_: None)
    mark = tmp_path / "ran"
    for content in (pickle.dumps(Runs(os.mkdir, str(mark))), b"Pid\n.", b"cos\nsystem\n(S'true'\ntR."):
        with pytest.raises(DataError, match="not a whole pickle"):
            read_plain_pickle(write(tmp_path, content))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(VALUE)[:-7],
        pickle.dumps(VALUE)[:40],
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
        b"0.",
        b"\x80\x02h\x07.",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_a_damaged_file_is_one_sentence(content, tmp_path):
    with pytest.raises(DataError, match=r"qas\.pkl (is not a whole pickle|holds)"):
        read_plain_pickle(write(tmp_path, content))


@pytest.mark.parametrize("place", [100_000, 2**31 - 1])
def test_a_small_file_cannot_ask_for_much_memory(place, tmp_path):
    """An unpickler makes a list as long as the place where a value is to be kept."""
    with pytest.raises(DataError, match="a wrong place"):
        read_plain_pickle(write(tmp_path, b"\x80\x02]r" + struct.pack("<I", place) + b"."))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.pkl does not exist"):
        read_plain_pickle(tmp_path / "absent.pkl")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_any_plain_value_returns(tmp_path_factory, value, protocol):
    found = read_plain_pickle(write(tmp_path_factory.mktemp("p"), pickle.dumps(value, protocol)))
    assert found == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_change_of_a_file_is_read_or_refused(tmp_path_factory, change, place):
    content = bytearray(pickle.dumps(VALUE, 2))
    content[place : place + len(change)] = change
    try:
        read_plain_pickle(write(tmp_path_factory.mktemp("p"), bytes(content)))
    except DataError:
        pass


def test_no_other_module_unpickles():
    """What reads files takes no pickle; multiprocessing's own is not in the sources."""
    root = Path(plain_pickle.__file__).parents[1]
    users = [
        path.name
        for path in root.rglob("*.py")
        if any(
            word in path.read_text(encoding="utf-8") for word in ("import pickle", "from pickle", "weights_only=False")
        )
    ]
    assert users == ["plain_pickle.py"]
