"""The recipe that writes instruction data: what is sent and kept, faults, kills, several processes, batch files."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from medtune.clients.budget import Budget, Prices, Spent
from medtune.clients.messages import pixels_sha256
from medtune.curation.generation import share_of_budget
from medtune.datasets import jsonl_dataset, llava_json_dataset
from medtune.judges.candidates import CandidateSource
from tests.curation.curate_server import (
    curate,
    manifest_of,
    rows_of,
    serve,
    served,
    text_only,
    two_answers,
    two_questions,
    write_figures,
)
from tests.judges.judge_server import FAULTS
from tests.recipes.processes import ended, forked, start


def test_conversations_in_llavas_format_and_ours_with_the_figures_texts(tmp_path: Path) -> None:
    figures = write_figures(tmp_path, 6)
    with serve() as server:
        assert curate(*served(tmp_path, server.url)) == 0
    rows = rows_of(tmp_path / "out/conversations.jsonl")
    assert [row["id"] for row in rows] == [f"f{number}" for number in range(6)]
    assert rows[2]["conversations"] == [
        {"from": "human", "value": "<image>\nWhat is in Figure 2."},
        {"from": "gpt", "value": "A lesion."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "In Figure 2."},
    ]
    assert (rows[2]["caption"], rows[2]["mentions"], rows[2]["image"]) == ("Figure 2.", ["See 2 ."], "2.png")
    assert rows[2]["domain"]["ct_scan"] and sum(rows[2]["domain"].values()) == 1
    for number in range(6):  # the image that was sent is the figure's own, and the only one
        own = pixels_sha256(Image.open(tmp_path / "images" / figures[number]["image"]))
        assert server.images[f"Figure {number}."] == [own]
    text = server.bodies[0]["messages"][0]["content"][1]["text"]
    assert text.count("<example_") == 10 and text.count("Demonstration ") == 10
    assert server.bodies[0]["temperature"] == 0.7 and server.bodies[0]["max_tokens"] == 4096
    counts = manifest_of(tmp_path)["counts"]
    assert counts == {
        "figures": 6, "repeated_rows": 0, "texts_cut": 0, "replies": 6, "parsed": 6, "questions": 12, "kept_aside": {},
    }  # fmt: skip
    assert manifest_of(tmp_path)["complete"] and manifest_of(tmp_path)["spent"]["prompt_tokens"] == 600
    ours = jsonl_dataset(str(tmp_path / "out/samples.jsonl"), str(tmp_path / "images"))
    theirs = llava_json_dataset(
        str(tmp_path / "out/conversations.jsonl"), str(tmp_path / "images"), ignore_keys=["caption", "mentions"]
    )
    assert [one.content for one in ours[3].messages] == [one.content for one in theirs[3].messages]
    assert ours.open_images(ours[3])[0].size == (5, 6)


def test_two_answers_to_each_question_are_candidates_for_clinicians(tmp_path: Path) -> None:
    write_figures(tmp_path, 3)
    with serve(say=two_answers) as server:
        assert curate(*served(tmp_path, server.url, "writing.prompt=candidates-v1")) == 0
    source = CandidateSource(tmp_path / "out/candidates.jsonl", tmp_path / "images")
    assert len(source) == 3 and source[1].answers == ("A lesion.", "A large lesion.")
    assert (source[1].id, source[1].question) == ("f1/question_1", "What is in Figure 1.")
    assert source[1].meta["caption"] == "Figure 1." and source.open_images(source[1])[0].size == (5, 6)
    assert manifest_of(tmp_path)["counts"]["identical_answers"] == 3
    assert not (tmp_path / "out/conversations.jsonl").exists()


def test_what_does_not_parse_is_kept_aside_and_counted_by_reason(tmp_path: Path) -> None:
    write_figures(tmp_path, 8)
    said = {
        "Figure 0.": "I am sorry, I cannot do that.",
        "Figure 1.": None,
        "Figure 2.": {"finish_reason": "length", "message": {"role": "assistant", "content": two_questions("x")}},
        "Figure 3.": "User: What?\nAssistant: A.\nUser: And",
        "Figure 4.": {"finish_reason": "content_filter", "message": {"role": "assistant", "content": "User"}},
        "Figure 5.": 400,
        "Figure 6.": "",
    }
    with serve(say=lambda caption: said.get(caption, two_questions(caption))) as server:
        assert curate(*served(tmp_path, server.url)) == 0
        assert curate(*served(tmp_path, server.url)) == 0 and server.requests == 8
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out/aside.jsonl")}
    assert reasons == {
        "f0": "prose", "f1": "declined", "f2": "cut_off", "f3": "unanswered", "f4": "declined", "f5": "rejected",
        "f6": "empty",
    }  # fmt: skip
    assert rows_of(tmp_path / "out/aside.jsonl")[0]["text"] == said["Figure 0."]
    assert manifest_of(tmp_path)["counts"]["kept_aside"] == dict(sorted(Counter(reasons.values()).items()))
    assert [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == ["f7"]


def test_a_generator_that_writes_prose_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_figures(tmp_path, 60, images=False)
    with serve(say=lambda caption: "A lesion is shown.") as server:
        words = text_only(tmp_path, server.url, "stop_after_unparsed=5", "server.concurrency=1")
        assert curate(*words) == 2
        assert server.requests < 20
    assert "none of the first 5 replies is a conversation (the last one: prose)" in capsys.readouterr().err


def test_images_that_are_gone_are_skipped_and_asked_about_when_they_are_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(tmp_path, 4)
    (tmp_path / "images/2.png").rename(tmp_path / "away.png")
    (tmp_path / "images/3.png").write_bytes(b"no image")
    with serve() as server:
        assert curate(*served(tmp_path, server.url, "on_error=raise")) == 2
        assert "2.png" in capsys.readouterr().err
        assert curate(*served(tmp_path, server.url)) == 0
        assert manifest_of(tmp_path)["missing"] == 2 and not manifest_of(tmp_path)["complete"]
        assert sorted(manifest_of(tmp_path)["skipped"]) == ["f2", "f3"]
        (tmp_path / "away.png").rename(tmp_path / "images/2.png")
        assert curate(*served(tmp_path, server.url)) == 0
    assert manifest_of(tmp_path)["missing"] == 1
    assert set(server.asked.values()) == {1} and len(server.asked) == 3
    assert [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == ["f0", "f1", "f2"]


def test_a_caption_of_20000_characters_is_cut_in_the_request_and_whole_in_the_output(tmp_path: Path) -> None:
    rows = write_figures(tmp_path, 2)
    rows[1]["caption"] = "A long one. " * 1700
    (tmp_path / "figures.json").write_text(json.dumps(rows))
    with serve() as server:
        assert curate(*served(tmp_path, server.url)) == 0
    assert 5900 < max(map(len, server.asked)) <= 6000 and manifest_of(tmp_path)["counts"]["texts_cut"] == 1
    assert rows_of(tmp_path / "out/conversations.jsonl")[1]["caption"] == rows[1]["caption"].strip()


def test_a_dry_run_prints_two_requests_and_the_estimate_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_figures(tmp_path, 5)
    monkeypatch.setenv("SOME_KEY", "secret")
    with serve() as server:
        words = served(tmp_path, server.url, "server.prices.input=2.5", "server.prices.output=10")
        assert curate(*words, "server.api_key_env=SOME_KEY", "dry_run=true", "budget.max_cost=3") == 0
        assert server.requests == 0
    said = capsys.readouterr().out
    assert said.count("POST http://127.0.0.1") == 2 and said.count("data:image/png;base64,<5 x 6 RGB") == 2
    assert "Caption: Figure 0." in said and "Caption: Figure 1." in said and "Caption: Figure 2." not in said
    assert "requests: 5" in said and "20,480 of replies" in said and "images: 5 would be sent" in said
    assert "cost: at most 0." in said and "budget: max_cost 3" in said and "secret" not in said
    assert not (tmp_path / "out").exists()


def test_a_fifth_of_all_calls_fails_and_every_figure_is_asked_once(tmp_path: Path) -> None:
    write_figures(tmp_path, 60, images=False)
    with serve(faults=0.2, hang=4) as server:
        words = text_only(tmp_path, server.url, "server.timeout=2", "server.concurrency=8")
        assert curate(*words) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 60
    assert set(server.failed) == set(FAULTS)
    ids = [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")]
    assert ids == [f"f{number}" for number in range(60)] and manifest_of(tmp_path)["spent"]["requests"] == 60


def test_a_server_that_is_busy_for_a_while_is_waited_for(tmp_path: Path) -> None:
    write_figures(tmp_path, 6, images=False)
    with serve(busy_until=25) as server:
        assert curate(*text_only(tmp_path, server.url)) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 6 and server.failed["429"] == 24


def killed_thrice(folder: Path, figures: int, hang: float, *more: str) -> None:
    """Kill a run three times while a fifth of its calls fails; then let it finish, and check that nothing is lost."""
    write_figures(folder, figures, images=False)
    state: dict = {"child": None, "kill_at": -1}

    def on_request(number: int) -> None:
        if number == state["kill_at"]:
            state["child"].kill()

    with serve(faults=0.2, hang=hang, on_request=on_request, keep=False) as server:
        words = text_only(folder, server.url, "server.timeout=2", *more)
        for part in (0.3, 0.25, 0.2, None):
            known = len(whole_lines(folder / "out/replies.jsonl"))
            before = Counter(server.asked)
            state["kill_at"] = server.requests + int(part * figures) if part else -1
            state["child"] = child = forked(lambda: curate(*words))
            assert ended(child) == (0 if part is None else -signal.SIGKILL)
            again = [key for key, count in server.asked.items() if before[key] and count > before[key]]
            # What was answered and had not reached the disk when the process died, at most one call per thread.
            assert len(again) <= before.total() - known + 32
    ids = [row["id"] for row in rows_of(folder / "out/conversations.jsonl")]
    assert (
        ids
        == [f"f{number}" for number in range(figures)]
        == [row["id"] for row in rows_of(folder / "out/generations.jsonl")]
    )
    keys = [row["key"] for row in rows_of(folder / "out/replies.jsonl")]
    assert len(set(keys)) == len(keys) == figures == len(server.asked)
    assert manifest_of(folder)["complete"] and manifest_of(folder)["spent"]["requests"] == figures


def whole_lines(path: Path) -> list[bytes]:
    """The whole lines of a file that a kill may have torn."""
    return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.is_file() else []


def test_three_kills_lose_nothing_and_every_id_is_there_once(tmp_path: Path) -> None:
    killed_thrice(tmp_path, 40, 4, "server.concurrency=4")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_figures_with_a_fifth_of_faults_and_three_kills(tmp_path: Path) -> None:
    killed_thrice(tmp_path, 2000, 1.5, "server.concurrency=32", "server.timeout=1")


def test_two_processes_share_the_figures_and_the_budget(tmp_path: Path) -> None:
    write_figures(tmp_path, 21, images=False)
    with serve() as server:
        few = text_only(tmp_path, server.url, "budget.max_requests=10")
        children = start(lambda given: curate(*given), tmp_path / "said", 2, few)
        assert [ended(child) for child in children] == [2, 2] and server.requests == 10
        words = text_only(tmp_path, server.url, "budget.max_requests=22")
        children = start(lambda given: curate(*given), tmp_path / "said", 2, words)
        assert [ended(child) for child in children] == [0, 0]
    assert set(server.asked.values()) == {1} and len(server.asked) == 21
    assert [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == [f"f{n}" for n in range(21)]
    assert manifest_of(tmp_path)["spent"]["requests"] == 21


def test_a_share_of_a_budget_counts_what_was_spent_for_every_process() -> None:
    prices = Prices(1.0, 1.0)
    spent = Spent(10, 600_000, 400_000)
    assert share_of_budget(Budget(3.0, 2_000_000, 30), spent, prices, 4) == Budget(1.5, 1_250_000, 15)
    assert share_of_budget(Budget(0.5, 10, 5), spent, prices, 4) == Budget(0.5, 10, 5)
    assert share_of_budget(Budget(), spent, prices, 4) == Budget()


def test_a_spent_budget_stops_the_run_and_a_larger_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(tmp_path, 8, images=False)
    with serve() as server:
        assert curate(*text_only(tmp_path, server.url, "budget.max_requests=5")) == 2
        assert "budget.max_requests: 5" in capsys.readouterr().err and server.requests == 5
        assert curate(*text_only(tmp_path, server.url, "budget.max_requests=8")) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 8


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_figures(tmp_path, 2)
    with serve() as server:
        assert curate(*served(tmp_path, server.url)) == 0
        for change in ("seed=1", "per_modality=1", "writing.rounds=3", "writing.temperature=0", "server.model=other"):
            assert curate(*served(tmp_path, server.url, change)) == 2
            assert "was made with other settings" in capsys.readouterr().err
        assert server.requests == 2
        assert curate(*served(tmp_path, server.url, "writing.min_turns=3")) == 2  # only how replies are read
    assert manifest_of(tmp_path)["counts"]["kept_aside"] == {"too_few_turns": 2} and server.requests == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["server=null"], "there is nothing to do"),
        (["modalities=[xray]"], "'xray' is unknown"),
        (["batch_results=[a]"], "go together"),
        (["groups={count: 2}"], "groups and features go together"),
        (["modalities=[mri]", "limit=1"], None),
        (["image_root=null"], "set image_root"),
        (["demonstrations=null", "figures=absent.json"], "Cannot read absent.json"),
    ],
)
def test_wrong_keys_are_said(change: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_figures(tmp_path, 6)
    with serve() as server:
        assert curate(*served(tmp_path, server.url, *change)) == (2 if said else 0)
        assert server.requests == (0 if said else 1)
    assert (said or "1 of 1 figures") in "".join(capsys.readouterr()) and (said or "Figure 1." in server.asked)


def result(line: dict, say: object = None, status: int = 200) -> dict:
    """What a batch gives back for a request."""
    text = two_questions("it") if say is None else say
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 50, "completion_tokens": 5}
    body = {"choices": [choice], "usage": usage} if status == 200 else {"error": {"message": "no"}}
    return {"id": "r", "custom_id": line["custom_id"], "response": {"status_code": status, "body": body}, "error": None}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_batch_files_are_written_and_their_results_read_back_until_nothing_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(tmp_path, 6)
    words = served(tmp_path, "http://127.0.0.1:9/v1", "server.prices.input=1", "server.options.reasoning_effort=low")
    assert curate(*words, "batch=write") == 0
    file = tmp_path / "out/batch/requests-0001.jsonl"
    lines = rows_of(file)
    assert len({line["custom_id"] for line in lines}) == 6 and {line["method"] for line in lines} == {"POST"}
    body = lines[0]["body"]
    assert body["reasoning_effort"] == "low" and "extra_body" not in body and body["model"] == "rule"
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    expired = {"custom_id": lines[1]["custom_id"], "response": None, "error": {"code": "batch_expired"}}
    rows = [result(lines[5]), result(lines[0]), expired, result(lines[2], status=400), result(lines[3], say="Prose.")]
    found = write_rows(tmp_path / "results.jsonl", [*rows, result(lines[4], status=500), result(lines[0])])
    assert curate(*words, "batch=read", f"batch_results=[{found}]") == 0
    assert "known 1, not answered 1, rejected 1, status 500 1, taken 3; 2 are still missing" in capsys.readouterr().err
    manifest = manifest_of(tmp_path)
    assert manifest["missing"] == 2 and manifest["counts"]["kept_aside"] == {"prose": 1, "rejected": 1}
    assert manifest["spent"]["prompt_tokens"] == 150 and manifest["spent"]["cost"] == 0.00015
    assert curate(*words, "batch=write") == 0
    again = rows_of(file)
    assert [line["custom_id"] for line in again] == [lines[1]["custom_id"], lines[4]["custom_id"]]
    more = write_rows(tmp_path / "more.jsonl", [result(line) for line in again])
    assert curate(*words, "batch=read", f"batch_results=[{more}]") == 0
    assert manifest_of(tmp_path)["complete"]
    assert [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == ["f0", "f1", "f4", "f5"]


def test_results_of_other_settings_or_no_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figures(tmp_path, 2)
    words = served(tmp_path, "http://127.0.0.1:9/v1")
    assert curate(*words, "batch=write", "budget.max_requests=1") == 2
    assert "budget.max_requests: 1" in capsys.readouterr().err and not (tmp_path / "out/batch").exists()
    assert curate(*words, "batch=write") == 0
    lines = rows_of(tmp_path / "out/batch/requests-0001.jsonl")
    good = write_rows(tmp_path / "good.jsonl", [result(line) for line in lines])
    stranger = {"custom_id": lines[0]["custom_id"] + "0"}
    for name, rows, more, said in (
        ("good", None, ["seed=1"], "requests with other settings"),
        ("strange", [result(stranger)], [], "names no figure of this run"),
        ("none", [{"x": 1}], [], "this is no result of a batch"),
        ("absent", None, [], "Cannot read"),
    ):
        path = good if name == "good" else tmp_path / f"{name}.jsonl"
        if rows:
            write_rows(path, rows)
        assert curate(*words, *more, "batch=read", f"batch_results=[{path}]") == 2
        assert said in capsys.readouterr().err
    assert curate(*words, "batch=read", f"batch_results=[{good}]") == 0


def test_batches_are_split_by_number_and_by_size(tmp_path: Path) -> None:
    from medtune.curation.batches import write_batches

    lines = [b"x" * size for size in (10, 10, 10, 50, 10)]
    found = write_batches(tmp_path / "b", lines, most_requests=2, most_bytes=40)
    assert [count for _, count in found] == [2, 1, 1, 1]
    assert b"".join(path.read_bytes() for path, _ in found) == b"".join(lines)
    assert [count for _, count in write_batches(tmp_path / "b", lines[:1])] == [1]
    assert len(list((tmp_path / "b").iterdir())) == 1  # older files are removed
