"""A judge of answers beside reference answers: what it is shown, where the reference comes from, what is unread."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medtune.clients.budget import Budget
from medtune.clients.served import RecordedClient, ServedModel
from medtune.data.sample import Message
from medtune.errors import ConfigError, DataError
from medtune.judges import ChatJudge, VerdictJudge
from medtune.judges.candidates import Candidate
from medtune.judges.scored_answers import AnswerBesideReference
from tests.judges.judge_server import JudgeServer, serve
from tests.judges.test_model_judge import IMAGES

CANDIDATE = AnswerBesideReference(
    "q",
    ("a.png",),
    (Message("user", "What?\n<image>"),),
    answers=("A stored answer.", "An answer of a model."),
    context={"caption": "The caption.", "mentions": "It is seen.", "reference": "A stored answer."},
)
WITHOUT = replace(CANDIDATE, answers=("", "An answer of a model."))


def judged(judge: Any, tmp_path: Path, candidate: Candidate = CANDIDATE, **told: Any) -> tuple[Any, JudgeServer]:
    with serve(**told) as server:
        model = ServedModel(server.url, "rule", max_retries=0, options={"top_k": 3})
        with RecordedClient(model, tmp_path / "r.jsonl", "run", Budget()) as client:
            return judge.judge(candidate, lambda: IMAGES[:1], client), server


def texts(server: JudgeServer) -> list[str]:
    """The text of each request."""
    parts = [body["messages"][0]["content"] for body in server.bodies]
    return [part if isinstance(part, str) else part[-1]["text"] for part in parts]


def test_reference_and_answer_are_scored_in_both_orders_with_the_figures_texts(tmp_path: Path) -> None:
    judgement, server = judged(
        ChatJudge(), tmp_path, say=lambda question, first, _: "9 3" if "stored" in first else "4 8"
    )
    assert judgement.scores == ((9 + 8) / 2, (3 + 4) / 2) and judgement.shown == ((9, 3), (4, 8))
    assert judgement.words == ("9 3", "4 8") and judgement.reference == "" and len(server.images) == 2
    for text in texts(server):
        assert "<caption>\nThe caption.\n</caption>\n<mentions>\nIt is seen.\n</mentions>" in text


def test_an_absent_mention_and_an_empty_answer_are_said_and_scored(tmp_path: Path) -> None:
    candidate = replace(CANDIDATE, answers=("A stored answer.", " "), context={"caption": "", "mentions": ""})
    judgement, server = judged(ChatJudge(orders="given"), tmp_path, candidate, say=lambda *_: "9 1")
    assert judgement.scores == (9, 1) and candidate.unusable == ""
    assert "<caption>\n(none)\n" in texts(server)[0] and "<answer_2>\n(no answer)\n" in texts(server)[0]


def test_a_long_caption_is_cut_and_the_answers_are_not(tmp_path: Path) -> None:
    long = "word " * 4000
    candidate = replace(CANDIDATE, answers=("r " * 3000, "a " * 3000), context={"caption": long, "mentions": long})
    _, server = judged(ChatJudge(text_limit=300, orders="given"), tmp_path, candidate, say=lambda *_: "9 1")
    (text,) = texts(server)
    assert text.count("word") < 130 and text.count("[...]") == 2 and text.count("r r ") >= 1499


@pytest.mark.parametrize("reference", ["made", "stored_or_made"])
def test_the_judge_makes_a_reference_answer_from_the_caption_once(reference: Any, tmp_path: Path) -> None:
    judge = ChatJudge(reference=reference, reference_options={"top_k": 1, "stop": ["#"]})
    judgement, server = judged(judge, tmp_path, WITHOUT, say=lambda *_: "9 3", refer=lambda _: " A made answer. ")
    assert judgement.reference == "A made answer." and judgement.scores == (6, 6)
    first, second, third = texts(server)
    assert "The caption." in first and "What?" in first and "answer of a model" not in first
    assert "<answer_1>\nA made answer.\n" in second and "<answer_2>\nA made answer.\n" in third
    assert (server.bodies[0]["top_k"], server.bodies[0]["stop"]) == (1, ["#"])
    assert server.bodies[1]["top_k"] == 3 and "stop" not in server.bodies[1]
    assert (judgement.asked, judgement.cached) == (3, 0)


def test_a_stored_reference_is_kept_unless_all_are_made(tmp_path: Path) -> None:
    kept, server = judged(ChatJudge(reference="stored_or_made"), tmp_path / "1", say=lambda *_: "9 3")
    assert kept.reference == "" and len(server.bodies) == 2
    made, server = judged(ChatJudge(reference="made"), tmp_path / "2", say=lambda *_: "9 3")
    assert made.reference == "The answer to: What?" and len(server.bodies) == 3


def test_without_a_reference_or_a_caption_the_question_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'q' has no reference answer; with judge.reference=stored_or_made"):
        judged(ChatJudge(), tmp_path, WITHOUT)
    with pytest.raises(DataError, match="'q' has no caption"):
        judged(ChatJudge(reference="made"), tmp_path, replace(CANDIDATE, context={}))


def test_a_reference_that_is_refused_or_empty_leaves_the_answer_unread(tmp_path: Path) -> None:
    for told, reason in (({"refer": lambda _: " "}, "reference_empty"), ({"status": 400}, "reference_rejected")):
        folder = tmp_path / reason
        judgement, server = judged(ChatJudge(reference="made"), folder, WITHOUT, **told)
        assert (judgement.scores, judgement.reason, judgement.shown) == (None, reason, ())
        assert len(server.bodies) == 1


def test_the_estimate_of_a_made_reference_counts_its_longest_form() -> None:
    requests = ChatJudge(reference="made", reference_max_tokens=50).requests(WITHOUT, lambda: IMAGES[:1])
    assert [request.max_tokens for request in requests] == [50, 300, 300]
    assert all("?" * 200 in str(request.messages) for request in requests[1:])


def test_images_are_opened_for_the_prompts_that_show_them() -> None:
    def gone() -> Any:
        raise AssertionError("the images must not be opened")

    blind = ChatJudge(prompt="chat_text-v1", reference="made", reference_prompt="reference_text-v1")
    assert not blind.looks and len(blind.requests(WITHOUT, gone)) == 3
    assert not ChatJudge(prompt="chat_text-v1").looks
    looking = ChatJudge(prompt="chat_text-v1", reference="made")
    kinds = [isinstance(one.messages[0]["content"], list) for one in looking.requests(WITHOUT, lambda: IMAGES[:1])]
    assert looking.looks and kinds == [True, False, False]


def test_what_decides_the_scores_is_in_the_identity() -> None:
    stored, made = ChatJudge().identity(), ChatJudge(reference="made").identity()
    assert stored["name"] == "chat" and stored["text_limit"] == 6000 and "reference_prompt" not in stored
    assert made["reference_prompt"].startswith("reference-v1@") and len(ChatJudge(reference="made").versions()) == 2
    assert ChatJudge(reference="made", reference_max_tokens=9).identity() != made


def test_options_out_of_range_and_a_scale_from_zero_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# scale: 0 10\n# images: no\n{question}{answer_1}{answer_2}")
    with pytest.raises(ConfigError, match="the scale must begin above 0"):
        ChatJudge(prompt=str(path))
    for options, says in (
        ({"reference": "given"}, "stored, made"),
        ({"reference_max_tokens": 0}, "reference_max_tokens"),
        ({"text_limit": 5}, "text_limit"),
    ):
        with pytest.raises(ValueError, match=says):
            ChatJudge(**options)


def test_verdicts_of_both_orders_are_points_and_a_judge_that_follows_the_place_ties(tmp_path: Path) -> None:
    def second_answer(question: str, first: str, second: str) -> str:
        return "[[A]]" if "model" in first else "[[B]]\nIt is."

    cases = {
        "always second": (second_answer, (0.0, 1.0), ((0.0, 1.0), (1.0, 0.0))),
        "always the first place": (lambda *_: "[[A]]", (0.5, 0.5), ((1.0, 0.0), (1.0, 0.0))),
        "one order ties": (lambda _, first, __: "[[C]]" if "model" in first else "[[A]]", (0.75, 0.25), None),
    }
    for name, (say, scores, shown) in cases.items():
        judgement, server = judged(VerdictJudge(), tmp_path / name, say=say)
        assert judgement.scores == scores and shown in (None, judgement.shown), name
        assert all("<right_answer>\nA stored answer.\n" in text for text in texts(server))


def test_a_verdict_that_is_not_one_leaves_the_question_unread(tmp_path: Path) -> None:
    judgement, _ = judged(VerdictJudge(), tmp_path, say=lambda *_: "8 7")
    assert (judgement.scores, judgement.reason) == (None, "no_verdict")


def test_a_verdict_needs_the_right_answer_unless_its_prompt_shows_none(tmp_path: Path) -> None:
    candidate = replace(CANDIDATE, context={})
    with pytest.raises(DataError, match=r"'q' has no reference answer, which the prompt verdict-v1 shows"):
        judged(VerdictJudge(), tmp_path, candidate)
    path = tmp_path / "mine.txt"
    answers = "<answer_A>\n{answer_1}\n</answer_A>\n\n<answer_B>\n{answer_2}\n</answer_B>"
    path.write_text("# images: no\nQuestion:\n{question}\n\n" + answers)
    assert judged(VerdictJudge(prompt=str(path)), tmp_path, candidate, say=lambda *_: "[[C]]")[0].scores == (0.5, 0.5)
