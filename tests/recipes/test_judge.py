"""The judge's recipe against servers on loopback: pairs, scores, budgets, caches, dry runs, bad input."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.clients.messages import pixels_sha256
from tests.judges.candidate_files import judge, manifest_of, rows_of, served, write_candidates
from tests.judges.judge_server import serve

CHECKOUT = Path(__file__).resolve().parents[2]


def test_pairs_scores_and_manifest_of_a_served_judge(tmp_path: Path) -> None:
    write_candidates(tmp_path, 6)
    with serve(together=2) as server:
        assert judge(*served(tmp_path, server.url)) == 0
    pairs = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert [pair["id"] for pair in pairs] == [f"q{number}" for number in range(6)]
    first = pairs[1]
    assert set(first) == {"id", "images", "messages", "chosen", "rejected", "scores", "source"}
    assert (first["chosen"], first["rejected"]) == ("Short 1.", "A longer answer with the number 1.")
    assert first["scores"] == [10 - 8 / 10, 10 - 34 / 10]
    assert first["source"]["model"] == "rule" and first["source"]["judge"]["prompt"].startswith("pair-v1@")
    manifest = manifest_of(tmp_path)
    assert manifest["complete"] and manifest["counts"]["pairs"] == manifest["counts"]["judged"] == 6
    assert manifest["replies"] == {
        "asked": 12, "from_cache": 0, "prompt_tokens": 1200, "completion_tokens": 120, "cost": None, "currency": None,
        "failed_attempts": {},
    }  # fmt: skip
    assert manifest["position_bias"]["rate"]["value"] == 0.0 and manifest["position_bias"]["consistent"] == 6
    assert set(server.asked.values()) == {1} and len(server.asked) == 12
    assert 1 < server.most <= 4


def test_the_server_gets_the_pixels_of_the_file_and_nobody_else_is_asked(tmp_path: Path) -> None:
    write_candidates(tmp_path, 3)
    with serve() as server:
        assert judge(*served(tmp_path, server.url)) == 0
    files = [pixels_sha256(Image.open(tmp_path / "images" / f"{number}.png")) for number in range(3)]
    assert Counter(server.images) == Counter(files * 2)
    grey = np.random.default_rng(9).integers(0, 256, (7, 9), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "images" / "0.png")
    with serve() as server:
        assert judge(*served(tmp_path, server.url, "limit=1", out="grey")) == 0
    assert set(server.images) == {pixels_sha256(Image.fromarray(grey).convert("RGB"))}


def test_a_judge_that_prefers_the_first_place_is_found_out_and_gives_no_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_candidates(tmp_path, 8)
    with serve(say=lambda question, first, second: "8 6") as server:
        assert judge(*served(tmp_path, server.url)) == 2
        bias, counts = manifest_of(tmp_path)["position_bias"], manifest_of(tmp_path)["counts"]
        assert (bias["rate"]["value"], bias["rate"]["n"], bias["first"]) == (1.0, 8, 8)
        assert bias["rate"]["interval"][0] > 0.6
        assert (counts["ties"], counts["pairs"]) == (8, 0)
        assert "pairs.jsonl is empty: 0 pairs of 8 judged, 8 ties" in capsys.readouterr().err
        asked = len(server.bodies)
        assert judge(*served(tmp_path, server.url, "ties=second")) == 0  # another rule, nothing asked anew
        assert len(server.bodies) == asked
        assert [pair["chosen"] for pair in rows_of(tmp_path / "out/pairs.jsonl")][:2] == [
            "A longer answer with the number 0.", "Short 1.",
        ]  # fmt: skip
        first_cache = f"cache={tmp_path / 'out/replies.jsonl'}"
        assert judge(*served(tmp_path, server.url, "judge.orders=given", first_cache, out="given")) == 0
    bias = manifest_of(tmp_path, "given")["position_bias"]
    assert bias["rate"]["value"] == 1.0 and len(server.bodies) == asked


def test_answers_that_give_no_choice_cost_nothing(tmp_path: Path) -> None:
    path = write_candidates(tmp_path, 4)
    rows = rows_of(path)
    rows[0]["answers"] = ["The same  answer.", "The same answer. "]
    rows[1]["answers"] = ["", "An answer."]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve() as server:
        assert judge(*served(tmp_path, server.url)) == 0
    assert manifest_of(tmp_path)["counts"]["dropped"] == {"empty_answer": 1, "identical_answers": 1}
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I think that the first answer is better than the second one.", "prose"),
        ("第一个回答更好，八分。", "other_language"),
        ("Первый ответ лучше: 8 из 10", "other_language"),
        ("I'm sorry, but I cannot assess medical images.", "refusal"),
        ("80 70", "out_of_range"),
        ("8 7 9", "too_many_numbers"),
    ],
)
def test_a_judge_without_scores_is_stopped_and_counted(
    said: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_candidates(tmp_path, 6)
    with serve(say=lambda *_: said) as server:
        words = served(tmp_path, server.url, "stop_after_unread=3", "server.concurrency=1")
        assert judge(*words) == 2
        assert f"none of the first 3 judgements has scores ({reason} 3)" in capsys.readouterr().err
        asked = len(server.bodies)
        assert asked < 12
        assert judge(*words) == 2 and len(server.bodies) == asked
        assert judge(*[*words, "stop_after_unread=null"]) == 2
    assert manifest_of(tmp_path)["counts"]["unread"] == {reason: 6}
    assert len(server.bodies) == 12


@pytest.mark.parametrize("budget", ["budget.max_requests=5", "budget.max_tokens=900", "budget.max_cost=0.0009"])
def test_a_budget_stops_the_run_before_it_is_exceeded_and_more_of_it_goes_on(
    budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_candidates(tmp_path, 6)
    prices = "server.prices={input: 1, output: 1}"
    sizes = ["judge.max_tokens=10", "server.image_tokens=10"]
    with serve() as server:
        assert judge(*served(tmp_path, server.url, prices, budget, *sizes)) == 2
        name = budget.split("=")[0]
        error = capsys.readouterr().err
        assert f"the budget is spent ({name}" in error and f"raise {name}" in error and "Traceback" not in error
        manifest = manifest_of(tmp_path)
        assert not manifest["complete"] and manifest["pairs_sha256"] is None
        assert not (tmp_path / "out/pairs.jsonl").exists()
        spent = manifest["replies"]
        assert 3 <= spent["asked"] <= 8 and spent["asked"] == server.asked.total()
        if name == "budget.max_requests":
            assert spent["asked"] == 5
        assert spent["prompt_tokens"] + spent["completion_tokens"] <= 900
        assert judge(*served(tmp_path, server.url, prices, budget, *sizes)) == 2  # counted over all starts
        assert server.asked.total() == spent["asked"]
        assert judge(*served(tmp_path, server.url, prices, *sizes)) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 12
    replies = manifest_of(tmp_path)["replies"]
    assert (replies["asked"], replies["cost"], replies["currency"]) == (12, 0.00132, "USD")


def test_a_budget_of_zero_asks_nothing_and_cached_replies_need_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_candidates(tmp_path, 2)
    shared = f"cache={tmp_path / 'shared.jsonl'}"
    with serve() as server:
        for limit in ("max_requests", "max_tokens"):
            assert judge(*served(tmp_path, server.url, shared, f"budget.{limit}=0")) == 2
            assert f"the budget is spent (budget.{limit}: 0)" in capsys.readouterr().err
        assert not server.bodies
        assert judge(*served(tmp_path, server.url, shared, "budget.max_cost=0")) == 2
        assert "budget.max_cost needs prices" in capsys.readouterr().err
        assert judge(*served(tmp_path, server.url, shared)) == 0
    assert judge(*served(tmp_path, server.url, shared, "budget.max_requests=0", out="again")) == 0  # no server either
    again = manifest_of(tmp_path, "again")
    assert (again["replies"]["asked"], again["replies"]["from_cache"]) == (0, 4)
    assert rows_of(tmp_path / "again/pairs.jsonl") == rows_of(tmp_path / "out/pairs.jsonl")


def test_a_cache_of_another_prompt_is_said_and_asked_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_candidates(tmp_path, 2)
    prompt = tmp_path / "mine.txt"
    packaged = (CHECKOUT / "medtune/assets/judge_prompts/pair-v1.txt").read_text()
    prompt.write_text(packaged)
    shared, own = f"cache={tmp_path / 'shared.jsonl'}", f"judge.prompt={prompt}"
    with serve() as server:
        assert judge(*served(tmp_path, server.url, shared, own)) == 0
        prompt.write_text(packaged.replace("excellent", "perfect"))
        assert judge(*served(tmp_path, server.url, shared, own)) == 2
        assert "was made with other settings (judge.prompt: mine@" in capsys.readouterr().err
        assert judge(*served(tmp_path, server.url, shared, own, out="new")) == 0
        assert "4 replies to mine@" in (error := capsys.readouterr().err) and "and asks anew" in error
        assert len(server.bodies) == 8
        assert judge(*served(tmp_path, server.url, shared, own, out="third")) == 0
        assert "asks anew" not in capsys.readouterr().err
    assert len(server.bodies) == 8


def test_a_dry_run_shows_one_request_and_the_estimate_and_sends_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_candidates(tmp_path, 5)
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with serve() as server:
        words = served(
            tmp_path, server.url, "dry_run=true", "server.api_key_env=JUDGE_KEY", "budget.max_cost=3",
            "server.options={extra_headers: {X-Account: secret-account}, seed: 3}",
            "server.prices={input: 2.5, output: 10}", "server.image_tokens=1000", "judge.max_tokens=100",
        )  # fmt: skip
        assert judge(*words) == 0
        said = capsys.readouterr().out
        assert not server.bodies and not (tmp_path / "out").exists()
        assert "secret" not in said and "base64,iVBOR" not in said and "***" in said
        assert "Question 0?" in said and "5 x 6 RGB" in said and '"seed": 3' in said
        assert "requests: 10" in said and "of replies" in said and "at most 1,000 tokens" not in said
        assert "1,000 of replies" in said and "budget: max_cost 3" in said
        assert f"images: 10 would be sent, all to {server.url}" in said
        assert judge(*words[:-1], "judge.prompt=pair_text-v1", "dry_run=true") == 0
        assert "images: none would be sent" in capsys.readouterr().out
        live = [word for word in words if word != "dry_run=true"]
        assert judge(*live, "limit=2") == 0 and server.authorizations == ["Bearer sk-very-secret"] * 4
        assert judge(*words) == 0
    said = capsys.readouterr().out
    assert "judged before: 2" in said and "requests: 6" in said
    for path in (tmp_path / "out").rglob("*"):
        assert b"sk-very-secret" not in path.read_bytes() and b"secret-account" not in path.read_bytes()


def test_a_request_that_the_server_rejects_is_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    from tests.clients.faulty_server import Reply
    from tests.clients.faulty_server import serve as serve_replies

    write_candidates(tmp_path, 2)
    good = {**json.loads(json.dumps(_completion("8 6")))}
    none = {**json.loads(json.dumps(_completion("")))}
    none["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "no"}
    with serve_replies(Reply(body=good), Reply(400), Reply(body=good), Reply(body=none)) as server:
        words = served(tmp_path, server.url, "server.concurrency=1")
        assert judge(*words) == 2
        assert manifest_of(tmp_path)["counts"]["unread"] == {"refusal": 1, "rejected": 1}
        assert len(server.bodies) == 4
        assert judge(*words) == 2 and len(server.bodies) == 4  # both are answers, and are not asked for again
    assert manifest_of(tmp_path)["replies"]["asked"] == 3


def _completion(text: str) -> dict:
    from tests.judges.judge_server import completion

    return completion(text)


def test_an_image_that_is_gone_is_an_error_by_name_or_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_candidates(tmp_path, 3)
    (tmp_path / "images/1.png").unlink()
    with serve() as server:
        assert judge(*served(tmp_path, server.url)) == 2
        assert "(id 'q1'): the image 1.png is not in" in capsys.readouterr().err
        with path.open("a") as file:
            file.write('{"id": "q9", "messages": [{"role": "user", "content": "?"}], "answers": ["one"]}\n')
        assert judge(*served(tmp_path, server.url, out="bad")) == 2
        assert "candidates.jsonl, line 4: 'answers' must be a list of two texts" in capsys.readouterr().err
        assert judge(*served(tmp_path, server.url, "on_error=skip", out="skipped")) == 0
    manifest = manifest_of(tmp_path, "skipped")
    assert manifest["counts"]["skipped"] == 2 and set(manifest["skipped"]) == {"q1", "row 4"}
    assert [pair["id"] for pair in rows_of(tmp_path / "skipped/pairs.jsonl")] == ["q0", "q2"]


def test_a_judge_of_known_truth_needs_no_server(tmp_path: Path) -> None:
    path = write_candidates(tmp_path, 40, images=False)
    rows = rows_of(path)
    for number, row in enumerate(rows):
        row["meta"]["attributes"] = {"answer": f"number {number}", "kind": "longer answer"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--config", "judge/attributes", f"candidates={path}", "judge.truth=null", "judge.noise=0.25"]
    assert judge(*words, f"output_dir={tmp_path / 'one'}") == 0
    assert judge(*words, f"output_dir={tmp_path / 'two'}", "judge.seed=1") == 0
    first, second = (rows_of(tmp_path / name / "pairs.jsonl") for name in ("one", "two"))
    right = [pair["chosen"].startswith("A longer") for pair in first]
    assert 20 < sum(right) < 38 and [pair["chosen"] for pair in first] != [pair["chosen"] for pair in second]
    assert manifest_of(tmp_path, "one")["replies"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["server=null"], "this judge asks a served model; set server.base_url and server.model"),
        (["candidates=null"], "key 'candidates' is missing"),
        (["judge.prompt=pair-v9"], "there is no prompt 'pair-v9'; did you mean 'pair-v1'"),
        (["server.base_url=ftp://x"], "server.base_url must be the address of a server"),
        (["server.prices.input=-1"], "prices must not be negative"),
        (["budget.max_cost=-1"], "limits must not be negative"),
        (["judge.orders=twice"], "orders"),
        (["limit=0"], "limit must be at least 1"),
    ],
)
def test_a_wrong_config_is_one_sentence(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_candidates(tmp_path, 1)
    assert judge(*served(tmp_path, "http://127.0.0.1:9/v1", *words)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
