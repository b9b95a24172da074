"""A served model as the judge: what it is shown, how two orders are averaged, what an unread reply does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.clients.budget import Budget
from medtune.clients.served import RecordedClient, ServedModel
from medtune.data.sample import Message
from medtune.errors import ConfigError
from medtune.judges import ModelJudge
from medtune.judges.base import Judgement
from medtune.judges.bias import position_bias
from medtune.judges.candidates import Candidate
from tests.judges.judge_server import serve

IMAGES = [Image.fromarray(np.full((3, 4, 3), value, dtype=np.uint8)) for value in (1, 2)]
CANDIDATE = Candidate(
    "q", ("a.png", "b.png"), (Message("user", "<image><image>What?"),), answers=("One. ", "Two {answer_1}")
)


def judged(say, tmp_path: Path, judge: ModelJudge | None = None, candidate: Candidate = CANDIDATE) -> tuple:
    with serve(say=say) as server:
        model = ServedModel(server.url, "rule", max_retries=0)
        with RecordedClient(model, tmp_path / "r.jsonl", "run", Budget()) as client:
            return (judge or ModelJudge()).judge(candidate, lambda: IMAGES, client), server


def test_scores_are_averaged_over_both_orders(tmp_path: Path) -> None:
    replies = {"One.": "9 4", "Two {answer_1}": "6 5"}
    judgement, server = judged(lambda question, first, second: replies[first], tmp_path)
    # "One." got 9 when it was first and 5 when it was second, "Two" got 4 and 6.
    assert judgement == Judgement("q", ((9 + 5) / 2, (4 + 6) / 2), "", ((9, 4), (6, 5)), 2, 0, words=("9 4", "6 5"))
    assert judgement.preferred == 0
    question, first, second = (server.bodies[0]["messages"][0]["content"][place]["type"] for place in range(3))
    assert (question, first, second) == ("image_url", "image_url", "text") and len(server.images) == 4


def test_one_order_is_asked_as_the_paper_does(tmp_path: Path) -> None:
    judgement, server = judged(lambda *_: "4 9", tmp_path, ModelJudge(orders="given", temperature=0.2))
    assert judgement == Judgement("q", (4, 9), "", ((4, 9),), 1, 0, words=("4 9",)) and judgement.preferred == 1
    assert server.bodies[0]["temperature"] == 0.2 and len(server.bodies) == 1


def test_a_judge_without_eyes_gets_no_image_and_opens_none(tmp_path: Path) -> None:
    def gone() -> list[Image.Image]:
        raise AssertionError("the images must not be opened")

    judge = ModelJudge(prompt="pair_text-v1")
    with serve() as server:
        with RecordedClient(ServedModel(server.url, "rule"), tmp_path / "r.jsonl", "run", Budget()) as client:
            assert judge.judge(CANDIDATE, gone, client).scores is not None
    assert isinstance(server.bodies[0]["messages"][0]["content"], str) and not judge.looks


@pytest.mark.parametrize(("first", "second"), [("8 7", "none"), ("none", "8 7")])
def test_a_candidate_is_unread_if_one_of_its_replies_is(first: str, second: str, tmp_path: Path) -> None:
    replies = {"One.": first, "Two {answer_1}": second}
    judgement, _ = judged(lambda question, shown, other: replies[shown], tmp_path)
    assert (judgement.scores, judgement.reason, judgement.asked) == (None, "prose", 2)
    assert judgement.shown.count(None) == 1


def test_a_conversation_is_shown_with_its_roles(tmp_path: Path) -> None:
    turns = (Message("user", "<image><image>What?"), Message("assistant", "A cell."), Message("user", "How big?"))
    seen = []
    judged(lambda question, *_: seen.append(question) or "8 7", tmp_path, candidate=replace(CANDIDATE, messages=turns))
    assert seen[0] == "User: What?\nAssistant: A cell.\nUser: How big?"


def test_a_judgement_survives_its_file() -> None:
    for judgement in (
        Judgement("q", (8.5, 7), "", ((8.5, 7), None), 1, 1),
        Judgement("q", None, "prose", (None,)),
        Judgement("q", (0.5, 0.5), votes=(1, 1, 2)),
        Judgement("q", (8, 7), "", ((8, 7),), words=("8 7\nGood.",), reference="A cell."),
    ):
        assert Judgement.from_dict(judgement.to_dict()) == judgement
    assert Judgement("q", (7, 7)).preferred is None and Judgement("q", None).preferred is None


def test_the_bias_is_the_share_of_choices_that_follow_the_place() -> None:
    follow_first, follow_second = ((8, 6), (9, 3)), ((6, 8), (3, 9))
    consistent, tied, unread = ((8, 6), (3, 9)), ((8, 6), (5, 5)), ((8, 6), None)
    shown = [follow_first, follow_first, follow_second, consistent, tied, unread]
    found = position_bias(Judgement(str(place), (1, 1), "", pair) for place, pair in enumerate(shown))
    assert found is not None
    assert {name: found[name] for name in ("first", "second", "consistent", "tied")} == {
        "first": 2, "second": 1, "consistent": 1, "tied": 1,
    }  # fmt: skip
    low, high = found["rate"]["interval"]
    assert (found["rate"]["value"], found["rate"]["n"]) == (0.75, 4) and low < 0.75 < high
    once = position_bias(
        Judgement(str(place), (1, 1), "", (pair,)) for place, pair in enumerate([(8, 6), (9, 3), (3, 9)])
    )
    assert once is not None and once["rate"]["value"] == 2 / 3
    assert position_bias([Judgement("q", (1.0, 0.0))]) is None


def test_options_out_of_range_are_refused() -> None:
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="temperature must not be negative"):
            ModelJudge(**options)
    with pytest.raises(ConfigError, match="there is no prompt"):
        ModelJudge(prompt="none")
