import json
import resource

import pytest

from medtune.data import append
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction, PredictionLog, read_predictions, write_predictions

ROW = Prediction("q/open", "open", "What?", "line\nbreak, ü", ("big",), {"swapped": False})


def test_round_trip(tmp_path):
    path = tmp_path / "runs" / "model" / "predictions.jsonl"
    write_predictions(path, [ROW])
    assert read_predictions(path) == [ROW]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "must be a JSON object"),
        ('{"id": "a", "task": "open"}', "'prediction'"),
        ('{"id": 3, "task": "open", "prediction": ""}', "'id'"),
        ('{"id": "", "task": "open", "prediction": ""}', "must not be empty"),
        ('{"id": "a", "task": "open", "prediction": "", "score": 1}', "'score'"),
        ('{"id": "a", "task": "open", "prediction": "", "references": "big"}', "'references'"),
        ('{"id": "a", "task": "open", "prediction": "", "meta": []}', "'meta'"),
        ('{"id": "\\ud800', "not a line of JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(ROW.to_dict()) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=says) as caught:
        read_predictions(path)
    assert f"{path}, line 3" in str(caught.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_predictions(path)


def test_missing_file_and_duplicate_id(tmp_path):
    with pytest.raises(DataError, match="no such prediction file"):
        read_predictions(tmp_path / "none.jsonl")
    write_predictions(tmp_path / "twice.jsonl", [ROW, ROW])
    with pytest.raises(DataError, match="'q/open' occurs more than once"):
        read_predictions(tmp_path / "twice.jsonl")


@pytest.mark.parametrize("torn", ['{"id": "next', "x" * 200_000, ""])
def test_the_log_goes_on_behind_a_torn_line(tmp_path, torn):
    path = tmp_path / "predictions.jsonl"
    with PredictionLog(path) as log:
        log.append(ROW)
    with path.open("a") as file:
        file.write(torn)
    with PredictionLog(path) as log:
        assert log.done == {"q/open"}
        log.append(Prediction("next", "open", "", "yes"))
    assert [row.id for row in read_predictions(path)] == ["q/open", "next"]


@pytest.mark.parametrize("torn", [65535, 65536, 65537])
def test_a_line_that_ends_where_a_block_begins_is_kept(tmp_path, torn):
    """The file is searched backwards, 65536 bytes at a time."""
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [ROW])
    with path.open("a") as file:
        file.write("x" * torn)
    with PredictionLog(path) as log:
        assert (log.cut, log.done) == (torn, {"q/open"})


def test_the_log_makes_its_folder_and_those_above_it(tmp_path):
    path = tmp_path / "runs" / "model" / "predictions.jsonl"
    with PredictionLog(path) as log:
        log.append(ROW)
    assert read_predictions(path) == [ROW]


def test_the_log_refuses_a_second_answer(tmp_path):
    with PredictionLog(tmp_path / "p.jsonl") as log:
        log.append(ROW)
        with pytest.raises(DataError, match="answered before"):
            log.append(ROW)


def test_an_answer_is_in_the_file_before_the_log_is_closed(tmp_path):
    log = PredictionLog(tmp_path / "p.jsonl")
    log.append(ROW)
    assert read_predictions(tmp_path / "p.jsonl") == [ROW]
    log.close()


def test_two_runs_never_write_one_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with PredictionLog(path) as first:
        with pytest.raises(DataError, match="being written by another run"):
            PredictionLog(path)
        first.append(Prediction("a", "open", "", "x"))
    with PredictionLog(path) as second:
        assert second.done == {"a"}


def answers(*names):
    return [Prediction(name, "open", "", f"ü{name}\n" * 3) for name in names]


def test_lines_are_arranged_in_a_new_file_that_stays_locked(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionLog(path) as log:
        for row in answers("c", "x", "a", "y"):
            log.append(row)
        log.arrange(["a", "b", "c"])
        with pytest.raises(DataError, match="being written by another run"):
            PredictionLog(path)
        log.append(*answers("b"))
    assert read_predictions(path) == answers("a", "c", "x", "y", "b")
    with PredictionLog(path) as log:
        log.arrange(["a", "b", "c"])
        assert log.done == {"a", "b", "c", "x", "y"}
    assert read_predictions(path) == answers("a", "b", "c", "x", "y")
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_file_in_order_is_left_alone(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, answers("a", "b"))
    before = path.stat()
    with PredictionLog(path) as log:
        log.arrange(["a", "b"])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_is_replaced_while_it_is_opened_is_locked_under_its_name(tmp_path, monkeypatch):
    path, real, seen = tmp_path / "p.jsonl", append.fcntl.flock, []
    write_predictions(path, answers("a"))

    def flock(descriptor, how):
        real(descriptor, how)
        seen.append(descriptor)
        if len(seen) == 1:
            write_predictions(path, answers("a", "b"))

    monkeypatch.setattr(append.fcntl, "flock", flock)
    with PredictionLog(path) as log:
        assert log.done == {"a", "b"}
        log.append(*answers("c"))
    assert [row.id for row in read_predictions(path)] == ["a", "b", "c"]
    assert seen == seen[:1] * 2, "the first descriptor was closed, so its number is free again"


def test_a_full_disk_is_said_and_what_was_written_is_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PredictionLog(path) as log:
        log.append(*answers("a"))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, limit[1]))
            with pytest.raises(DataError, match=r"Cannot write .*p.jsonl: File too large"):
                log.append(*answers("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with PredictionLog(path) as log:
        assert log.cut == 9 and log.done == {"a"}
