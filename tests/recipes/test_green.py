"""GREEN's recipe against servers on loopback: counts in the prediction file, resume, budget, faults, bad input."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medtune.data.writing import jsonl_bytes
from medtune.evaluation.prediction import Prediction, read_predictions, write_predictions
from medtune.recipes.evaluate import main as evaluate
from medtune.recipes.green import main as green
from tests.clients.faulty_server import Reply, serve
from tests.evaluation.reports.test_protocol import NAME, RIGHT, STRONG, answered, questions

COUNTS = "[Clinically Significant Errors]:\n(a) False: {a}. x\n(b) Missing: {b}. y\n\n[Matched Findings]:\n{m}. z"


def said(text: str, finish: str = "stop") -> Reply:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Reply(
        body={"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage},
        headers={"retry-after-ms": "1"},
    )


def counted(a: int, b: int, m: int) -> Reply:
    return said(COUNTS.format(a=a, b=b, m=m))


def arguments(folder: Path, url: str, **more: Any) -> list[str]:
    keys = {
        "predictions": folder / "predict" / "predictions.jsonl",
        "output_dir": folder / "green",
        "server.base_url": url,
        "server.model": "m",
        "server.concurrency": 1,
        "stop_after_unread": "null",
        **more,
    }
    return ["--config", "green/openai_server", *(f"{key}={value}" for key, value in keys.items())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four reports, one of them empty, and what predict writes beside them."""
    rows = answered([STRONG[0], STRONG[1], "", STRONG[3]])
    other = Prediction("q/open", "open", "?", "yes", (), {"sample_id": "q"})
    write_predictions(tmp_path / "predict" / "predictions.jsonl", [*rows, other])
    record = {"config": {"protocols": [NAME], "swapped": [], "limit": None, "seed": 0}}
    (tmp_path / "predict" / "predictions.meta.json").write_text(json.dumps(record))
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "test.jsonl").write_bytes(jsonl_bytes(questions()))
    return tmp_path


def graded(folder: Path) -> dict[str, Any]:
    return {row.id: row.meta.get("green") for row in read_predictions(folder / "green" / "graded.jsonl")}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "green" / "green.json").read_text())


def test_counts_go_into_the_prediction_file_and_its_scores(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with serve(counted(0, 0, 2), counted(1, 0, 1), said("I cannot.")) as server:
        assert green(arguments(folder, server.url)) == 0
    found = graded(folder)
    assert [found[f"r{at}/{NAME}"]["matched"] for at in range(4)] == [2, 1, 0, None]
    assert found[f"r1/{NAME}"] == {"significant": [1, 0, 0, 0, 0, 0], "matched": 1, "reason": "", "official": 0.5}
    assert found[f"r3/{NAME}"]["reason"] == "section_missing" and found["q/open"] is None
    assert len(server.bodies) == 3  # an empty report is not sent
    prompt = server.bodies[0]["messages"][0]["content"]
    assert prompt.index(RIGHT[0]) < prompt.index(STRONG[0]) or RIGHT[0] == STRONG[0]
    assert server.bodies[0].get("temperature", 0) == 0
    kept = manifest(folder)
    assert (kept["reports"], kept["read"], kept["unread"]) == (4, 3, {"section_missing": 1})
    assert kept["prompt"].startswith("green-v1@") and kept["replies"]["asked"] == 3
    assert "beside ROUGE-L" in capsys.readouterr().out

    keys = {
        "predictions": folder / "green" / "graded.jsonl",
        "prepared_dir": folder / "prepared",
        "output": folder / "scores",
        "on_extra": "ignore",
        "bootstrap_draws": 5,
    }
    assert not evaluate(["--config", "evaluate/reports", *(f"{key}={value}" for key, value in keys.items())])
    overall = json.loads((folder / "scores" / "results.json").read_text())["protocols"][NAME]["overall"]
    assert overall["green_micro"]["value"] == pytest.approx((1 + 1 / 2 + 0) / 3) and overall["green_micro"]["n"] == 3
    assert overall["green_unread_micro"]["value"] == 0.25
    assert overall["green_official_micro"]["value"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert overall["rouge_l_micro"]["n"] == 4 and "Reports, ROUGE-L" in capsys.readouterr().out


def test_a_run_that_stopped_asks_only_for_what_is_missing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with serve(counted(0, 0, 1)) as server:
        assert green(arguments(folder, server.url, **{"budget.max_requests": 2})) != 0
        assert len(server.bodies) == 2 and not (folder / "green" / "graded.jsonl").exists()
        assert green(arguments(folder, server.url)) == 0
        assert len(server.bodies) == 3
        assert green(arguments(folder, server.url)) == 0
        assert len(server.bodies) == 3
    counts = Counter(body["messages"][0]["content"] for body in server.bodies)
    assert set(counts.values()) == {1} and manifest(folder)["read"] == 4


def test_faults_of_the_server_are_retried_and_a_refusal_is_unread(folder: Path) -> None:
    refused = Reply(400, {"error": {"message": "too long"}}, {"retry-after-ms": "1"})
    broken = Reply(500, {"error": {"message": "x"}}, {"retry-after-ms": "1"})
    half = Reply(missing=5, headers={"retry-after-ms": "1"})
    with serve(broken, half, counted(0, 1, 1), refused, counted(0, 0, 3)) as server:
        assert green(arguments(folder, server.url)) == 0
    found = [graded(folder)[f"r{at}/{NAME}"] for at in (0, 1, 3)]
    assert [one["reason"] for one in found] == ["", "no_reply", ""]
    assert [one["matched"] for one in found] == [1, None, 3] and len(server.bodies) == 5


def test_a_reply_that_was_cut_off_is_counted_and_has_no_score(folder: Path) -> None:
    with serve(said("[Clinically Significant Errors]:\n(a) False: 1.", "length")) as server:
        assert green(arguments(folder, server.url)) == 0
    assert manifest(folder)["cut_off"] == 3 and manifest(folder)["unread"] == {"section_missing": 3}


def test_a_model_that_is_not_greens_is_stopped(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with serve(said("The reports agree.")) as server:  # the third report is empty and says nothing about the model
        assert green(arguments(folder, server.url, stop_after_unread=3)) != 0
    assert "none of the first 3 replies has GREEN's counts (section_missing 3)" in capsys.readouterr().err
    assert not (folder / "green" / "graded.jsonl").exists()


def test_a_dry_run_sends_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with serve() as server:
        assert green(arguments(folder, server.url, dry_run="true")) == 0
    assert not server.bodies and not (folder / "green").exists()
    shown = capsys.readouterr().out
    assert "requests: 3, less those" in shown and "[Matched Findings]" in shown


def test_what_cannot_be_graded_is_said_in_one_sentence(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = folder / "predict" / "predictions.jsonl"
    every = read_predictions(path)
    write_predictions(path, every[-1:])
    assert green(arguments(folder, "http://127.0.0.1:9/v1")) != 0
    assert "holds no generated report" in capsys.readouterr().err
    write_predictions(path, [Prediction("a", NAME, "", "x", (), {"images": []})])
    assert green(arguments(folder, "http://127.0.0.1:9/v1")) != 0
    assert "prediction 'a': a report is graded against the right one" in capsys.readouterr().err
    assert green(arguments(folder, "http://127.0.0.1:9/v1", prompt="none")) != 0
    assert "there is no prompt 'none' of GREEN" in capsys.readouterr().err
    assert green(arguments(folder, "http://127.0.0.1:9/v1", max_words=0)) != 0
    assert "max_words must be at least 1" in capsys.readouterr().err


def test_the_answers_of_another_protocol_to_a_report_question_are_graded_too(folder: Path) -> None:
    path = folder / "predict" / "predictions.jsonl"
    meta = {"flare_task": NAME, "answer": RIGHT[0], "sample_id": "f", "images": ["a.png"]}
    rows = [Prediction("f/flare", "flare", "?", STRONG[0], (), meta)]
    write_predictions(path, [*rows, Prediction("f/flare/swapped", "flare", "?", "x", (), {**meta, "swapped": True})])
    with serve(counted(0, 0, 1)) as server:
        assert green(arguments(folder, server.url)) == 0
    assert graded(folder)["f/flare"]["matched"] == 1 and graded(folder)["f/flare/swapped"] is None
