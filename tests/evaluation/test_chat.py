"""The protocol ``chat``: what is asked, what a judge's scores add up to, and what is left out and counted."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtune.data.sample import Message, Sample
from medtune.data.writing import jsonl_bytes
from medtune.errors import DataError
from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.evaluation import Evaluation, evaluate, metric_rows
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.evaluation.protocols.chat import Chat
from medtune.evaluation.protocols.registry import plan_queries
from medtune.recipes.evaluate import main
from medtune.reporting.comparison import compare
from medtune.reporting.runs import read_run
from tests.judges.chat_files import DOMAINS, question

SCORES = {0: (8.0, 4.0), 1: (10.0, 5.0), 2: (8.0, 8.0), 3: (4.0, 6.0), 4: None, 5: (8.0, 2.0)}
"""Question to the scores of reference and answer; question 4 is unread."""
QUESTIONS = [question(number) for number in SCORES]


def grade(scores: tuple[float, float] | None, effect: float = 0.0, **more: Any) -> dict[str, Any]:
    """A grade of two replies; the answer gets ``effect`` more points when it is shown first."""
    shown = (None, None) if scores is None else (
        (scores[0], scores[1] - effect / 2), (scores[0], scores[1] + effect / 2)
    )  # fmt: skip
    fields = {"reason": "" if scores else "prose", "words": ("a", "b"), "reference": "r", "made": False, "judge": "j"}
    return ChatGrade(shown, **{**fields, **more}).to_dict()  # type: ignore[arg-type]


def graded(scores: Mapping[int, tuple[float, float] | None] = SCORES, **more: Any) -> list[Prediction]:
    queries = plan_queries(QUESTIONS, ["chat"])
    return [
        Prediction(one.id, "chat", one.prompt, "x", one.references, {**one.meta, "chat": grade(scores[at], **more)})
        for at, one in enumerate(queries)
    ]


def scored(rows: list[Prediction], **more: Any) -> Evaluation:
    return evaluate(QUESTIONS, rows, {}, name="x", protocols=["chat"], **more)


def values(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number["value"] for name, number in numbers.items()}


def test_the_question_is_asked_as_it_is_with_what_a_judge_needs() -> None:
    (query,) = Chat().plan(QUESTIONS[0])
    assert (query.id, query.prompt, query.references) == ("q0/chat", "Question 0?\n<image>", ("Reference 0.",))
    assert query.meta == {
        "attribute": "mri", "question_type": "conversation", "answer": "Reference 0.", "caption": "Caption 0.",
        "mentions": ["Mention 0."], "sample_id": "q0", "images": ["0.png"], "swapped": False,
    }  # fmt: skip


def test_a_conversation_is_asked_with_its_earlier_turns_and_its_last_answer_is_the_reference() -> None:
    turns = (Message("user", "<image>What?"), Message("assistant", "A cell."), Message("user", "How big?"))
    sample = Sample("c", ("0.png",), (*turns, Message("assistant", "Small.")))
    (query,) = Chat().plan(sample)
    assert query.sample.messages == turns and query.references == ("Small.",) and query.meta["attribute"] == "all"
    assert query.meta["history"] == [["user", "<image>What?"], ["assistant", "A cell."]]
    (query,) = Chat().plan(Sample("c", ("0.png",), turns))
    assert query.references == () and query.meta["answer"] == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"meta": {"answer": 3}}, "meta.answer, the reference answer, must be a text"),
        ({"meta": {"attribute": ""}}, "meta.attribute must be a text"),
        ({"meta": {"question_type": 1}}, "meta.question_type must be a text"),
        ({"meta": {"caption": 1}}, "meta.caption must be a text"),
        ({"meta": {"mentions": "x"}}, "meta.mentions must be a list"),
        ({"images": ()}, "a question needs an image"),
        ({"messages": (Message("user", "<image>"),)}, "a question needs an image and a user turn"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match="question 'q0'") as caught:
        Chat().plan(replace(QUESTIONS[0], **changes))
    assert says in str(caught.value)


def test_the_relative_score_is_the_mean_of_the_ratios_and_unread_answers_are_left_out() -> None:
    overall = scored(graded()).results["protocols"]["chat"]["overall"]
    ratios = [100 * pair[1] / pair[0] for pair in SCORES.values() if pair]
    assert overall["relative_score_micro"]["value"] == pytest.approx(np.mean(ratios)) == pytest.approx(75.0)
    assert overall["relative_of_means_micro"]["value"] == pytest.approx(100 * (25 / 5) / (38 / 5))
    assert overall["answer_score_micro"]["value"] == 5.0 and overall["reference_score_micro"]["value"] == 7.6
    assert {number["n"] for name, number in overall.items() if name.endswith("score_micro")} == {5}
    assert overall["unread"]["value"] == pytest.approx(1 / 6) and overall["unread"]["n"] == 6
    assert overall["relative_score_micro"]["unit"] == "% of the reference"


def test_domains_and_question_types_have_numbers_of_their_own() -> None:
    found = scored(graded()).results["protocols"]["chat"]
    assert set(found["attributes"]) == set(DOMAINS)
    # Images 0 and 2 (questions 0, 1, 4, 5) are MRI; even questions are conversation.
    assert found["attributes"]["mri"]["relative_score"]["value"] == pytest.approx((50 + 50 + 25) / 3)
    assert found["attributes"]["mri"]["unread"]["value"] == 0.25
    assert values(found["question_types"]["conversation"])["relative_score"] == pytest.approx((50 + 100) / 2)
    assert found["question_types"]["conversation"]["unread"]["n"] == 3
    assert found["question_types"]["detailed_description"]["relative_score"]["value"] == pytest.approx(225 / 3)
    overall = (100 * (4 + 5 + 2) / 3 / (26 / 3) + 100 * (14 / 12)) / 2
    assert found["overall"]["relative_of_means_macro"]["value"] == pytest.approx(overall)


def test_the_effect_of_the_place_is_reported_where_both_orders_were_asked() -> None:
    overall = scored(graded(effect=3.0)).results["protocols"]["chat"]["overall"]
    assert overall["place_effect_micro"]["value"] == pytest.approx(3.0)
    assert overall["relative_score_micro"]["value"] == pytest.approx(75.0)
    rows = [
        replace(row, meta={**row.meta, "chat": {**row.meta["chat"], "shown": [[8, 4]], "reason": ""}})
        for row in graded()
    ]
    assert scored(rows).results["protocols"]["chat"]["overall"]["place_effect_micro"]["value"] is None


@pytest.mark.parametrize(("effect", "share"), [(0.0, 0.0), (8.0, 1.0)])
def test_scores_of_a_judge_that_follows_the_place_have_a_caution(effect: float, share: float) -> None:
    """Of six judgements one is unread, and without an effect another one is a tie."""
    scores = {at: None if at == 4 else (8.0, 8.0 if at == 2 else 6.0) for at in SCORES}
    overall = scored(graded(scores, effect=effect)).results["protocols"]["chat"]["overall"]
    assert overall["follows_place_micro"]["value"] == share
    assert overall["follows_place_micro"]["n"] == (4 if effect == 0.0 else 5)
    said = overall["relative_score_micro"].get("caution", "")
    assert ("same place in both orders for 100% of the questions" in said) == (share == 1.0)
    assert ("caution" in overall["answer_score_micro"]) == (share == 1.0) and "caution" not in overall["unread"]


def test_half_of_the_judgements_by_place_is_no_caution_yet_and_more_is() -> None:
    def caution(followed: int) -> str:
        rows = [
            replace(row, meta={**row.meta, "chat": grade((8.0, 6.0), 8.0 if at < followed else 0.0)})
            for at, row in enumerate(graded())
        ]
        return scored(rows).results["protocols"]["chat"]["overall"]["relative_score_micro"].get("caution", "")

    assert caution(3) == "" and "for 67% of the questions" in caution(4)


def test_intervals_are_those_of_a_bootstrap_over_images() -> None:
    """Two equal questions on each image: the interval is that of half as many questions."""
    scores = {number: (10.0, float(1 + number // 2 % 7)) for number in range(40)}
    questions = [question(number) for number in scores]
    rows = [
        Prediction(one.id, "chat", one.prompt, "x", one.references, {**one.meta, "chat": grade(scores[at])})
        for at, one in enumerate(plan_queries(questions, ["chat"]))
    ]
    twice = evaluate(questions, rows, {}, name="x", protocols=["chat"]).results["protocols"]["chat"]["overall"]
    once = evaluate(questions[::2], rows[::2], {}, name="x", protocols=["chat"]).results["protocols"]["chat"]["overall"]
    for name in ("relative_score_micro", "relative_of_means_micro"):
        assert twice[name]["interval"] == pytest.approx(once[name]["interval"])
        low, high = twice[name]["interval"]
        assert low < twice[name]["value"] < high and "bootstrap over images" in twice[name]["definition"]


def test_all_answers_unread_give_no_number_and_never_100_percent() -> None:
    overall = scored(graded(dict.fromkeys(SCORES))).results["protocols"]["chat"]["overall"]
    assert all(number["value"] is None and number["n"] == 0 for name, number in overall.items() if name != "unread")
    assert overall["unread"]["value"] == 1.0


def test_the_results_say_who_judged_and_why_answers_are_unread() -> None:
    facts = scored(graded(judge="gpt-4o, chat-v1@1, orders both")).results["vocabulary"]["chat"]
    assert facts["judges"] == ["gpt-4o, chat-v1@1, orders both"] and facts["unread"] == {"prose": 1}
    assert facts["references"]["made_by_the_judge"] == 0 and len(facts["references"]["sha256"]) == 64


def test_answers_that_were_not_judged_are_an_error_that_names_the_recipe() -> None:
    rows = [Prediction(q.id, "chat", q.prompt, "x", q.references, q.meta) for q in plan_queries(QUESTIONS, ["chat"])]
    with pytest.raises(DataError, match=r"'q0/chat' has no score of a judge; run the judge recipe"):
        scored(rows)
    missing = scored(graded()[:-1], on_missing="wrong").results["protocols"]["chat"]["overall"]
    assert missing["unread"]["value"] == pytest.approx(2 / 6) and missing["relative_score_micro"]["n"] == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"shown": [[8, "4"]]}, {"shown": [[8]]}, {"shown": [[0, 4]]}, {"shown": [[8, True]]}, {"shown": 3},
        {"words": [1]}, {"made": "no"}, {"judge": None}, {"shown": [[8, float("nan")]]},
    ],
)  # fmt: skip
def test_a_grade_that_is_none_is_refused_with_the_id(changes: dict[str, Any]) -> None:
    rows = graded()
    rows[0] = replace(rows[0], meta={**rows[0].meta, "chat": {**grade((8, 4)), **changes}})
    with pytest.raises(DataError, match=r"prediction 'q0/chat': meta.chat holds no scores"):
        scored(rows)


def test_a_grade_survives_its_file_and_half_a_judgement_has_no_score() -> None:
    whole = ChatGrade(((8.0, 3.0), (9.0, 5.0)), "", ("x", "y"), "r", True, "j")
    assert ChatGrade.from_dict(json.loads(json.dumps(whole.to_dict())), "x") == whole
    assert whole.scores == (8.5, 4.0) and whole.place_effect == 2.0
    half = replace(whole, shown=((8.0, 3.0), None), reason="prose")
    assert half.scores is None and half.place_effect is None
    assert replace(whole, shown=((8.0, 3.0), None)).scores is None and replace(whole, shown=()).scores is None


def test_swapped_images_are_asked_and_their_cost_is_that_of_the_relative_score() -> None:
    queries = plan_queries(QUESTIONS, ["chat"], swapped=["chat"])
    rows = [
        Prediction(
            one.id, "chat", one.prompt, "x", one.references,
            {**one.meta, "chat": grade((8.0, 2.0 if one.meta["swapped"] else 6.0))},
        )
        for one in queries
    ]  # fmt: skip
    assert sum(one.meta["swapped"] for one in queries) == 6
    assert all(one.meta["images"] != [f"{int(one.meta['sample_id'][1:]) // 2}.png"] for one in queries[6:])
    found = scored(rows, swapped=["chat"]).results["protocols"]["chat"]
    assert found["swapped"]["drop_macro"]["value"] == pytest.approx(50.0)
    assert found["overall"]["relative_score_micro"]["value"] == pytest.approx(75.0)


def saved(folder: Path, name: str, rows: list[Prediction]) -> Path:
    """Evaluate by the recipe; the folder of the run."""
    prepared = folder / "prepared"
    prepared.mkdir(exist_ok=True)
    (prepared / "test.jsonl").write_bytes(jsonl_bytes(QUESTIONS))
    (folder / name).mkdir()
    write_predictions(folder / name / "graded.jsonl", rows)
    assert not main(
        ["--config", "evaluate/chat", f"predictions={folder / name}/graded.jsonl", f"prepared_dir={prepared}",
         f"output={folder / name}"]
    )  # fmt: skip
    return folder / name


def test_two_models_are_compared_on_the_questions_that_both_have_scores_of(tmp_path: Path) -> None:
    better = {at: None if at == 0 else pair and (pair[0], pair[1] + 1) for at, pair in SCORES.items()}
    base, other = (read_run(saved(tmp_path, name, graded(s))) for name, s in (("a", SCORES), ("b", better)))
    found = compare(base, other)["chat"]
    gains = [100 / 10, 100 / 8, 100 / 4, 100 / 8]  # of questions 1, 2, 3, 5
    assert found["micro"]["value"] == pytest.approx(np.mean(gains)) and found["micro"]["n"] == 4
    assert found["relative_of_means_macro"]["value"] > 0 and found["relative_of_means_macro"]["interval"]
    for name, more, why in (
        ("c", {"judge": "another"}, "scored by different judges"),
        ("d", {"reference": "another"}, "beside different reference answers"),
    ):
        third = read_run(saved(tmp_path, name, graded(**more)))
        assert why in compare(base, third)["skipped"]["chat"]


def test_tables_hold_numbers_of_every_group_and_no_text_of_an_answer(tmp_path: Path) -> None:
    folder = saved(tmp_path, "a", graded())
    for path in (folder / "verdicts.csv", folder / "numbers.csv", folder / "results.json"):
        assert "Reference" not in path.read_text() and "Caption" not in path.read_text()
    rows = list(csv.DictReader((folder / "verdicts.csv").open()))
    assert (
        rows[0]["measure:relative_score"] == "50.0"
        and rows[4]["read"] == "0"
        and rows[4]["measure:relative_score"] == ""
    )
    results = json.loads((folder / "results.json").read_text())
    groups = {(row["group"], row["attribute"]) for row in metric_rows(results)}
    assert {("attributes", "mri"), ("question_types", "conversation"), ("overall", "")} <= groups
