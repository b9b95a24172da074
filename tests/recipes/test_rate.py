"""The recipe that lets a served model rate: one request for each question, faults, kills, and broken replies."""

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.clients.messages import pixels_sha256
from medtune.curation.prompts import FOLDER
from medtune.curation.rating import PLACEHOLDERS, Criteria
from medtune.errors import ConfigError
from medtune.judges.prompts import read_prompt
from tests.curation.curate_server import manifest_of, rows_of, serve
from tests.curation.selector_data import annotation, conversation, write_lines
from tests.judges.judge_server import FAULTS, MODEL
from tests.recipe_modules import load_recipe
from tests.recipes.processes import ended, forked, start

# A packaged prompt is never changed: caches and results name it. Another wording is a new file.
VERSIONS = {"rating-v1": "6a019c18a6c1", "rating_text-v1": "98d91de80c5b"}


def rate(*words: str) -> int:
    return load_recipe("rate").main(list(words))


def wanted(folder: Path, url: str, *more: str, config: str = "rate/llama_cpp") -> list[str]:
    """The words of a run on the conversations of a folder."""
    return [
        "--config", config, f"data=[{folder / 'rows.jsonl'}]", f"output_dir={folder / 'out'}",
        f"server.base_url={url}", f"server.model={MODEL}", "server.concurrency=4", "server.timeout=20",
        "on_error=raise", *more,
    ]  # fmt: skip


def write_rows(folder: Path, count: int, turns: int = 1) -> None:
    write_lines(folder / "rows.jsonl", [conversation(number, turns) for number in range(count)])


def score(caption: str) -> str:
    """The number in a caption, modulo 11."""
    return f"{int(caption.removeprefix('Caption ').removesuffix('.')) % 11}\nBecause."


def test_packaged_prompts_are_as_they_were_released() -> None:
    names = [path.stem for path in FOLDER.glob("rating*.txt")]
    found = {name: read_prompt(name, PLACEHOLDERS, folder=FOLDER) for name in names}
    assert {name: one.version.split("@")[1] for name, one in found.items()} == VERSIONS
    assert all((one.low, one.high) == (0, 10) and "{mentions}" in one.text for one in found.values())
    assert found["rating-v1"].images and not found["rating_text-v1"].images
    with pytest.raises(ConfigError, match="there is no prompt 'rating-v0'"):
        Criteria("rating-v0")


def test_each_turn_is_rated_with_its_image_question_answer_and_caption(tmp_path: Path) -> None:
    write_rows(tmp_path, 3, turns=2)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with serve(say=score) as server:
        words = wanted(tmp_path, server.url, f"image_root={tmp_path}", config="rate/openai_server")
        assert rate(*words) == 0
        assert rate(*words) == 0 and server.requests == 6, "a second start asks nothing"
    assert rows_of(tmp_path / "out/ratings.jsonl") == [
        {"id": f"v{number}/turn_{turn}", "rating": float(number), "reason": ""}
        for number in range(3)
        for turn in (1, 2)
    ]
    own = pixels_sha256(Image.open(tmp_path / "2.png"))
    assert server.images["Caption 2."] == [own]
    texts = [body["messages"][0]["content"][1]["text"] for body in server.bodies]
    assert sum("Question 1 of 2?" in text and "Answer 1 of 2." in text for text in texts) == 1
    assert all("<image>" not in text and "See it." in text for text in texts)
    assert {body.get("temperature", 0) for body in server.bodies} == {0} and server.bodies[0]["max_tokens"] == 200
    counts = manifest_of(tmp_path)["counts"]
    assert counts == {"records": 6, "rated": 6, "scores": {"0": 2, "1": 2, "2": 2}, "unread": {}}


def test_both_answers_of_a_candidate_are_rated(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [annotation(4)])
    with serve(say=score) as server:
        assert rate(*wanted(tmp_path, server.url)) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out/ratings.jsonl")] == ["c4/answer_1", "c4/answer_2"]


def test_a_reply_without_a_score_gives_no_rating_and_never_0(tmp_path: Path) -> None:
    write_rows(tmp_path, 7)
    said = {
        "Caption 0.": "8.5", "Caption 1.": "It is good.", "Caption 2.": None, "Caption 3.": "11", "Caption 4.": "7 8",
        "Caption 5.": 400, "Caption 6.": "I am sorry, I cannot.",
    }  # fmt: skip
    with serve(say=said.get) as server:
        assert rate(*wanted(tmp_path, server.url)) == 0
    found = {row["id"]: (row["rating"], row["reason"]) for row in rows_of(tmp_path / "out/ratings.jsonl")}
    assert found == {
        "v0/turn_1": (8.5, ""), "v1/turn_1": (None, "prose"), "v2/turn_1": (None, "refusal"),
        "v3/turn_1": (None, "out_of_range"), "v4/turn_1": (None, "too_many_numbers"), "v5/turn_1": (None, "rejected"),
        "v6/turn_1": (None, "refusal"),
    }  # fmt: skip
    assert manifest_of(tmp_path)["counts"]["unread"] == {
        "out_of_range": 1, "prose": 1, "refusal": 2, "rejected": 1, "too_many_numbers": 1,
    }  # fmt: skip


def test_a_model_that_gives_no_scores_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, 40)
    with serve(say=lambda caption: "Fine.") as server:
        assert rate(*wanted(tmp_path, server.url, "stop_after_unread=5", "server.concurrency=1")) == 2
        assert server.requests < 15
    assert "none of the first 5 replies has a score (the last one: prose)" in capsys.readouterr().err


def test_a_fifth_of_faults_and_two_kills_lose_nothing_and_ask_nothing_twice(tmp_path: Path) -> None:
    write_rows(tmp_path, 40)
    state: dict = {"child": None, "kill_at": -1}

    def on_request(number: int) -> None:
        if number == state["kill_at"]:
            state["child"].kill()

    with serve(say=score, faults=0.2, hang=4, on_request=on_request) as server:
        words = wanted(tmp_path, server.url, "server.timeout=2")
        for more in (15, 12, None):
            state["kill_at"] = server.requests + more if more else -1
            state["child"] = child = forked(lambda: rate(*words))
            assert ended(child) == (-signal.SIGKILL if more else 0)
    assert set(server.failed) <= set(FAULTS) and server.failed.total() > 3
    assert [row["id"] for row in rows_of(tmp_path / "out/ratings.jsonl")] == [f"v{n}/turn_1" for n in range(40)]
    keys = [row["key"] for row in rows_of(tmp_path / "out/replies.jsonl")]
    assert len(keys) == len(set(keys)) == 40 and manifest_of(tmp_path)["spent"]["requests"] == 40


def test_two_processes_share_the_questions(tmp_path: Path) -> None:
    write_rows(tmp_path, 15)
    with serve(say=score) as server:
        words = wanted(tmp_path, server.url)
        children = start(lambda given: rate(*given), tmp_path / "said", 2, words)
        assert [ended(child) for child in children] == [0, 0]
    assert set(server.asked.values()) == {1} and len(server.asked) == 15
    assert [row["id"] for row in rows_of(tmp_path / "out/ratings.jsonl")] == [f"v{n}/turn_1" for n in range(15)]


def test_a_dry_run_prints_a_request_and_the_estimate_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path, 3)
    with serve(say=score) as server:
        assert rate(*wanted(tmp_path, server.url, "dry_run=true", "server.prices={input: 1, output: 2}")) == 0
        assert server.requests == 0
    said = capsys.readouterr().out
    assert "questions: 3" in said and "Question 0 of 0?" in said and "requests: 3" in said and "no images" in said
    assert not (tmp_path / "out").exists()


def test_images_that_are_gone_are_skipped_and_rated_when_they_are_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path, 2)
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").rename(tmp_path / "away.png")
    with serve(say=score) as server:
        words = wanted(tmp_path, server.url, f"image_root={tmp_path}", config="rate/openai_server")
        assert rate(*words) == 2 and "1.png" in capsys.readouterr().err
        assert rate(*words, "on_error=skip") == 0 and manifest_of(tmp_path)["missing"] == 1
        (tmp_path / "away.png").rename(tmp_path / "1.png")
        assert rate(*words) == 0 and set(server.asked.values()) == {1}
    assert len(rows_of(tmp_path / "out/ratings.jsonl")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["data=[]"], "data is empty"),
        (["limit=0"], "limit must be at least 1"),
        (["criteria.prompt=pair-v1"], "there is no prompt 'pair-v1'"),
        (["criteria.prompt=rating-v1"], "set image_root"),
        (["criteria.temperature=-1"], "temperature must not be negative"),
    ],
)
def test_wrong_keys_are_said(change: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, 2)
    with serve(say=score) as server:
        assert rate(*wanted(tmp_path, server.url, *change)) == 2
    assert said in capsys.readouterr().err
