"""Answers of a chat from the questions to the scores: dry run, faults, kills, bad input, win rates with a reference."""

import json
import signal
from pathlib import Path

import pytest

from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.prediction import Prediction, read_predictions, write_predictions
from medtune.recipes.evaluate import main as evaluate
from tests.judges.candidate_files import judge, manifest_of, rows_of
from tests.judges.chat_files import points, scoring, write_answers, write_questions
from tests.judges.judge_server import FAULTS, MODEL, serve
from tests.recipes.processes import ended
from tests.recipes.test_judge_resume import judging_process


def grades(folder: Path, out: str = "judged") -> dict[str, ChatGrade]:
    """Grades by the number of the question."""
    rows = read_predictions(folder / out / "graded.jsonl")
    return {row.id: ChatGrade.from_dict(row.meta["chat"], row.id) for row in rows if "chat" in row.meta}


def results_of(folder: Path, out: str = "judged") -> dict:
    words = [f"predictions={folder / out}/graded.jsonl", f"prepared_dir={folder}/prepared", f"output={folder}/scored"]
    assert not evaluate(["--config", "evaluate/chat", *words])
    return json.loads((folder / "scored/results.json").read_text())


def test_answers_are_scored_beside_references_and_evaluated(tmp_path: Path, capsys) -> None:
    path = write_answers(tmp_path, 8, {3: "Reference 3.", 5: ""})
    record = {"config": {"protocols": ["chat"], "swapped": [], "limit": None, "seed": 0}}
    path.with_suffix(".meta.json").write_text(json.dumps(record))
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url)) == 0
    assert "8 of 8 answers scored, unread: 0" in capsys.readouterr().out
    found = grades(tmp_path)
    assert found["q4/chat"].shown == ((9.0, 4.0), (8.0, 5.0)) and found["q4/chat"].scores == (8.5, 4.5)
    assert found["q3/chat"].scores == (8.5, 8.5) and found["q5/chat"].scores == (8.5, 1.5)
    assert (
        found["q4/chat"].words[0] == "9 4\nBecause of 'Question 4?'." and found["q4/chat"].reference == "Reference 4."
    )
    assert found["q4/chat"].judge.startswith(f"{MODEL}, chat-v1@") and not found["q4/chat"].made
    manifest = manifest_of(tmp_path, "judged")
    assert manifest["complete"] and manifest["scored"] == str(path) and len(manifest["graded_sha256"]) == 64
    assert manifest["position_bias"]["rate"]["n"] == 7 and len(server.images) == 15  # q3 is asked once
    assert not (tmp_path / "judged/pairs.jsonl").exists()
    chat = results_of(tmp_path)["protocols"]["chat"]
    expected = [100 * score / 8.5 for score in (1.5, 1.5, 2.5, 8.5, 4.5, 1.5, 6.5, 7.5)]
    assert chat["overall"]["relative_score_micro"]["value"] == pytest.approx(sum(expected) / 8)
    assert chat["overall"]["place_effect_micro"]["value"] == pytest.approx(1.0)
    assert set(chat["question_types"]) == {"conversation", "detailed_description"}


def test_made_references_are_shared_by_two_models_through_one_cache(tmp_path: Path) -> None:
    write_answers(tmp_path, 4, answer=None)
    write_answers(tmp_path, 4, dict.fromkeys(range(4), "Answer 7."), out="other", answer=None)
    more = ("judge.reference=made", f"cache={tmp_path / 'shared.jsonl'}")
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url, *more)) == 0
        assert judge(*scoring(tmp_path, server.url, *more, f"score={tmp_path / 'other.jsonl'}", out="second")) == 0
    asked_for = [key for key in server.asked if key[1] == ""]
    assert len(asked_for) == 4 and {server.asked[key] for key in asked_for} == {1}
    one, other = grades(tmp_path), grades(tmp_path, "second")
    assert {name: grade.reference for name, grade in one.items()} == {
        name: grade.reference for name, grade in other.items()
    }
    assert one["q0/chat"].made and one["q0/chat"].reference == "The answer to: Question 0?"
    assert "references made by reference-v1@" in one["q0/chat"].judge
    facts = results_of(tmp_path)["vocabulary"]["chat"]
    assert facts["references"]["made_by_the_judge"] == 4


def test_a_dry_run_sends_nothing_and_shows_one_request(tmp_path: Path, capsys) -> None:
    write_answers(tmp_path, 3, {1: ""})
    words = scoring(tmp_path, "http://127.0.0.1:9/v1", "judge.reference=made", "server.prices={input: 1, output: 1}")
    assert judge(*words, "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "candidates: 3; with nothing to choose: none; judged before: 0" in said
    assert "requests: 9, less those" in said and "images: 9 would be sent" in said and "cost: at most" in said
    assert "Caption 0." in said and not (tmp_path / "judged").exists()


def test_a_fifth_of_all_calls_fails_and_unread_replies_are_dropped_and_counted(tmp_path: Path) -> None:
    write_answers(tmp_path, 40)
    with serve(say=points, faults=0.2, foreign=0.1, hang=4) as server:
        words = ("server.timeout=2", "server.concurrency=8")
        assert judge(*scoring(tmp_path, server.url, *words)) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 80 and set(server.failed) == set(FAULTS)
    found = grades(tmp_path)
    unread = {name for name, grade in found.items() if grade.scores is None}
    assert 0 < len(unread) < 30 and {found[name].reason for name in unread} == {"other_language"}
    chat = results_of(tmp_path)["protocols"]["chat"]["overall"]
    ratios = [100 * grade.scores[1] / grade.scores[0] for grade in found.values() if grade.scores]
    assert chat["relative_score_micro"]["value"] == pytest.approx(sum(ratios) / len(ratios))
    assert chat["relative_score_micro"]["n"] == 40 - len(unread) and chat["unread"]["value"] == len(unread) / 40


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("The first answer is much better than the second.", "prose"),
        ("I'm sorry, but I can't judge medical images.", "refusal"),
        ('{"answer_1": 8, "answer', "broken_json"),
        ("8 out of 10", "prose"),
        ("11 0", "out_of_range"),
    ],
)
def test_a_judge_that_never_gives_scores_is_stopped_with_the_reason(
    reply: str, reason: str, tmp_path: Path, capsys
) -> None:
    write_answers(tmp_path, 6)
    with serve(say=lambda *_: reply) as server:
        assert judge(*scoring(tmp_path, server.url, "stop_after_unread=3")) == 2
        assert f"none of the first 3 judgements has scores ({reason} 3)" in capsys.readouterr().err
        assert judge(*scoring(tmp_path, server.url, "stop_after_unread=null")) == 0
    overall = results_of(tmp_path)["protocols"]["chat"]["overall"]
    assert overall["relative_score_micro"]["value"] is None and overall["unread"]["value"] == 1.0


def test_two_kills_lose_nothing_and_repeat_at_most_what_was_on_its_way(tmp_path: Path) -> None:
    write_answers(tmp_path, 12)
    state: dict = {"child": None, "kill_at": 0}

    def on_request(number: int) -> None:
        if number == state["kill_at"]:
            state["child"].kill()

    with serve(say=points, on_request=on_request) as server:
        words = scoring(tmp_path, server.url, "judge.reference=made")
        for more in (9, 11, None):
            state["kill_at"] = len(server.bodies) + more if more else -1
            state["child"] = judging_process(words)
            assert ended(state["child"]) == (0 if more is None else -signal.SIGKILL)
    replies = rows_of(tmp_path / "judged/replies.jsonl")
    assert len({row["key"] for row in replies}) == len(replies) == 36 == len(server.asked)
    assert server.asked.total() <= 36 + 2 * 4
    assert len(grades(tmp_path)) == 12 and manifest_of(tmp_path, "judged")["replies"]["asked"] == 36


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path: Path, capsys) -> None:
    write_answers(tmp_path, 5)
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url, "budget.max_requests=6", "server.concurrency=1")) == 2
        assert "budget" in capsys.readouterr().err and not (tmp_path / "judged/graded.jsonl").exists()
        assert judge(*scoring(tmp_path, server.url, "budget.max_requests=10")) == 0
    assert set(server.asked.values()) == {1} and len(grades(tmp_path)) == 5


def test_a_question_that_cannot_be_judged_is_named_and_can_be_skipped(tmp_path: Path, capsys) -> None:
    rows = read_predictions(write_answers(tmp_path, 3))
    rows[1].meta["answer"] = ""
    rows[1] = Prediction(rows[1].id, "chat", rows[1].prompt, "x", (), rows[1].meta)
    write_predictions(tmp_path / "answers.jsonl", rows)
    (tmp_path / "images/1.png").unlink()
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url)) == 2
        assert "'q1/chat' has no reference answer" in capsys.readouterr().err
        assert judge(*scoring(tmp_path, server.url, "on_error=skip")) == 0
    manifest = manifest_of(tmp_path, "judged")
    assert set(manifest["skipped"]) == {"q1/chat", "q2/chat"} and set(grades(tmp_path)) == {"q0/chat"}
    assert "1.png" in manifest["skipped"]["q2/chat"]


def test_a_config_that_cannot_be_meant_is_refused(tmp_path: Path, capsys) -> None:
    path = write_answers(tmp_path, 2)
    rows = [Prediction("v", "vqa", "?", "yes", (), {"sample_id": "v"})]
    write_predictions(tmp_path / "vqa.jsonl", rows)
    url = "http://127.0.0.1:9/v1"
    for words, says in (
        ([f"candidates={path}"], "score takes one file of answers"),
        (["score=null"], "a ChatJudge scores answers beside reference answers"),
        (["--config", "judge/openai_server", "candidates=null"], "a ChatJudge scores answers"),
        ([f"score={tmp_path / 'vqa.jsonl'}"], "holds no answers to questions of a chat"),
        (["judge.prompt=pair-v2"], "there is no prompt 'pair-v2'"),
    ):
        given = scoring(tmp_path, url, *words)
        assert judge(*(words + given[2 : -len(words)] if "--config" in words else given)) == 2, words
        assert says in capsys.readouterr().err, words


def test_answers_of_other_protocols_are_passed_on(tmp_path: Path) -> None:
    path = write_answers(tmp_path, 2)
    other = Prediction("v/vqa", "vqa", "?", "yes", ("yes",), {"sample_id": "v"})
    write_predictions(path, [other, *read_predictions(path)])
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url)) == 0
    first, *rest = read_predictions(tmp_path / "judged/graded.jsonl")
    assert first == other and all("chat" in row.meta for row in rest)


def test_an_answer_on_another_image_is_judged_with_its_own_questions_image(tmp_path: Path) -> None:
    rows = read_predictions(write_answers(tmp_path, 2))
    swapped = {**rows[0].meta, "images": ["1.png"], "swapped": True, "swapped_with": "q2", "shown_answer": "x"}
    write_questions(tmp_path, 4)
    write_predictions(
        tmp_path / "answers.jsonl", [rows[0], Prediction("q0/chat/swapped", "chat", "?", "x", (), swapped)]
    )
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url, "server.concurrency=1")) == 0
    assert len(server.images) == 4 and len(set(server.images)) == 1


def test_the_win_rate_with_right_answers_is_given_for_each_type_and_order(tmp_path: Path, capsys) -> None:
    """The second model is better on open questions, the judge follows the place on closed ones."""
    (tmp_path / "images").mkdir()
    for name, word in (("one", "poor"), ("two", "good")):
        rows = [
            Prediction(
                f"q{at}", "vqa", f"Question {at}?", f"A {word} answer {at}.", ("right",),
                {"images": [f"{at // 2}.png"], "attribute": "PRES", "answer_type": ("open", "closed")[at % 2]},
            )
            for at in range(8)
        ]  # fmt: skip
        write_predictions(tmp_path / f"{name}.jsonl", rows)
    path = tmp_path / "blind.txt"
    path.write_text(
        "# images: no\nQuestion:\n{question}\n\n<right_answer>{reference}</right_answer>\n\n"
        "<answer_A>\n{answer_1}\n</answer_A>\n\n<answer_B>\n{answer_2}\n</answer_B>"
    )

    def say(question: str, first: str, second: str) -> str:
        closed = int(question[9]) % 2
        return "[[A]]\nWhy?" if closed or "good" in first else "[[B]]"

    with serve(say=say) as server:
        words = ["--config", "judge/verdict_openai_server", f"compare=[{tmp_path}/one.jsonl,{tmp_path}/two.jsonl]"]
        words += [f"server.base_url={server.url}", f"server.model={MODEL}", f"judge.prompt={path}"]
        assert judge(*words, f"output_dir={tmp_path / 'out'}") == 0
    manifest = manifest_of(tmp_path)
    won = manifest["win_rate"]
    assert (won["rate"]["value"], won["wins"], won["ties"], won["losses"]) == (0.75, 4, 4, 0)
    assert set(won["groups"]) == {"answer_type"}
    by_type = won["groups"]["answer_type"]
    assert by_type["open"]["rate"]["value"] == 1.0 and by_type["open"]["rate"]["interval"][0] < 1.0
    assert by_type["closed"]["rate"]["value"] == 0.5 and by_type["closed"]["ties"] == 4
    assert manifest["position_bias"]["rate"]["value"] == 0.5 and manifest["position_bias"]["first"] == 4
    assert "win rate 75.0%" in capsys.readouterr().out
    assert all(body["messages"][0]["content"].count("<right_answer>right<") == 1 for body in server.bodies)
    assert rows_of(tmp_path / "out/judgements.jsonl")[1]["words"] == ["[[A]]\nWhy?", "[[A]]\nWhy?"]


def test_answers_of_other_programs_are_completed_from_the_question_file(tmp_path: Path, capsys) -> None:
    whole = read_predictions(write_answers(tmp_path, 4))
    bare = [{"id": row.id, "task": "chat", "prediction": row.prediction} for row in whole]
    questions = f"questions={tmp_path}/prepared/test.jsonl"
    with serve(say=points) as server:
        assert judge(*scoring(tmp_path, server.url)) == 0
        asked = sorted(json.dumps(body["messages"]) for body in server.bodies)
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
        assert judge(*scoring(tmp_path, server.url, questions, out="bare")) == 0
        assert sorted(json.dumps(body["messages"]) for body in server.bodies[8:]) == asked
        assert grades(tmp_path, "bare") == grades(tmp_path)
        assert results_of(tmp_path, "bare")["protocols"] == results_of(tmp_path)["protocols"]
        (tmp_path / "other.jsonl").write_text((tmp_path / "answers.jsonl").read_text().replace("Answer", "Other"))
        compare = f"compare=[{tmp_path}/answers.jsonl,{tmp_path}/other.jsonl]"
        words = scoring(tmp_path, server.url, questions, compare, out="compared")
        words[1] = "judge/verdict_openai_server"
        assert judge(*(word for word in words if not word.startswith("score=")), "stop_after_unread=null") in (0, 2)
        asked = str([body["messages"] for body in server.bodies[16:]]).replace("\\n", "\n")  # in any order
        assert all(asked.count(f"<right_answer>\nReference {number}.\n") == 2 for number in range(4))
        (tmp_path / "answers.jsonl").write_text(json.dumps({**bare[0], "id": "q9/chat"}) + "\n")
        assert judge(*scoring(tmp_path, server.url, questions, out="strange")) == 2
    assert "'q9/chat' answers no question of" in capsys.readouterr().err
    assert judge("--config", "judge/openai_server", "questions=x.jsonl") == 2
    assert "set compare or score" in capsys.readouterr().err
