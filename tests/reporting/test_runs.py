import json
import shutil

import pytest

from medtune.data.writing import file_sha256
from medtune.errors import DataError
from medtune.reporting.runs import read_run


def test_a_trained_run(runs):
    run = read_run(runs[2])
    assert run.name == "InstFree"
    assert run.metrics[0]["loss"] == 3.0
    assert "seed: 0" in run.config
    assert run.predictions == {} and run.verdicts
    assert read_run(runs[2], "other", with_answers=True).predictions


def test_half_a_metrics_line_is_passed_over_and_a_foreign_one_named(runs, tmp_path):
    folder = shutil.copytree(runs[1], tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10')
    assert len(read_run(folder).metrics) == 101
    (folder / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1"):
        read_run(folder)


@pytest.mark.parametrize("several", [False, True])
def test_answers_are_found_where_evaluate_read_them(runs, tmp_path, several):
    folder = shutil.copytree(runs[1], tmp_path / "run")
    elsewhere = shutil.move(folder / "predictions.jsonl", tmp_path / "answers.jsonl")
    results = json.loads((folder / "results.json").read_text())
    results["provenance"]["config"]["predictions"] = [str(elsewhere)] if several else str(elsewhere)
    (folder / "results.json").write_text(json.dumps(results))
    assert read_run(folder, with_answers=True).predictions == read_run(runs[1], with_answers=True).predictions


def test_answers_that_evaluate_read_come_before_those_of_the_folder_unless_they_have_changed(runs, tmp_path):
    """A judge writes its scores into a copy of the answers, and evaluate reads the copy."""
    folder = shutil.copytree(runs[1], tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    copy = tmp_path / "graded.jsonl"
    copy.write_text("".join(json.dumps({**row, "meta": {**row["meta"], "graded": 1}}) + "\n" for row in rows))
    results = json.loads((folder / "results.json").read_text())
    results["provenance"]["config"]["predictions"] = str(copy)
    results["provenance"]["sha256"] = {"predictions": [file_sha256(copy)]}
    (folder / "results.json").write_text(json.dumps(results))

    def graded() -> set[object]:
        return {row.meta.get("graded") for row in read_run(folder, with_answers=True).predictions.values()}

    assert graded() == {1}
    copy.write_text(copy.read_text().replace('"graded": 1', '"graded": 2'))
    assert graded() == {None}
    copy.unlink()
    assert graded() == {None}
