import dataclasses

import pytest

from medtune.errors import ConfigError, DataError
from medtune.evaluation.protocols.base import Vocabulary
from medtune.evaluation.protocols.registry import PROTOCOLS, build_protocol, plan_queries


@pytest.fixture
def vocabulary(questions, majority):
    return Vocabulary.of(questions, majority)


def test_multiple_choice_asks_in_the_papers_words(questions):
    (query,) = build_protocol("multiple_choice").plan(questions[4])
    assert query.prompt == (
        "What is the granule type?\nA. coarse\nB. round\nC. small\n"
        'Response with only the letter of the correct choice, starting with "The correct answer is [A or B or C].".'
    )
    assert query.references == ("The correct answer is A.",)
    assert query.sample.images == questions[4].images
    assert [message.role for message in query.sample.messages] == ["user"]


def test_multiple_choice_verdicts(questions, answer, vocabulary):
    protocol = build_protocol("multiple_choice")
    (query,) = protocol.plan(questions[4])
    right = protocol.judge(answer(query), vocabulary)
    assert (right.correct, right.in_format, right.predicted, right.chance) == (True, True, "coarse", 1 / 3)
    wrong = protocol.judge(answer(query, "The correct answer is B."), vocabulary)
    assert (wrong.correct, wrong.in_format, wrong.predicted) == (False, True, "round")
    unread = protocol.judge(answer(query, "coarse granule type"), vocabulary)
    assert (unread.correct, unread.in_format, unread.predicted) == (False, False, None)


def test_letter_likelihood_takes_the_best_score(questions, answer, vocabulary):
    protocol = build_protocol("letter_likelihood")
    (query,) = protocol.plan(questions[4])
    assert query.continuations == tuple(f"The correct answer is {letter}." for letter in "ABC")
    assert protocol.judge(answer(query, scores=[-3.0, -1.0, -2.0]), vocabulary).predicted == "round"
    assert protocol.judge(answer(query, scores=[-1.0, -1.0, -2.0]), vocabulary).predicted == "coarse"


@pytest.mark.parametrize("scores", [[-1.0], [-1.0, float("nan"), 0.0], "abc", None])
def test_letter_likelihood_refuses_missing_scores(questions, answer, vocabulary, scores):
    protocol = build_protocol("letter_likelihood")
    row = answer(protocol.plan(questions[4])[0])
    with pytest.raises(DataError, match="3 log-probabilities"):
        protocol.judge(dataclasses.replace(row, meta={**row.meta, "scores": scores}), vocabulary)


def test_open_verdicts(questions, answer, vocabulary):
    protocol = build_protocol("open")
    (query,) = protocol.plan(questions[4])
    assert query.prompt == "What is the granule type?"
    assert protocol.judge(answer(query, "The granule type is coarse."), vocabulary).correct
    report = protocol.judge(answer(query, "big cell size, coarse granule type"), vocabulary)
    assert (report.correct, report.in_format) == (True, False)  # the value is there, but as a recited report
    assert protocol.judge(answer(query, "pink"), vocabulary).predicted is None


def test_open_keeps_the_wording_of_the_question(questions):
    turn = dataclasses.replace(questions[0].messages[0], content="<image>What is the mass margin?")
    sample = dataclasses.replace(questions[0], messages=(turn,))
    assert build_protocol("open").plan(sample)[0].prompt == "What is the mass margin?"
    bare = dataclasses.replace(questions[0], messages=questions[0].messages[1:])
    assert build_protocol("open").plan(bare)[0].prompt == "What is the cell size?"


def test_yes_no_coins_are_fair_and_depend_on_seed_and_id(questions):
    many = [dataclasses.replace(questions[4], id=f"q{i}") for i in range(400)]
    protocol = build_protocol("yes_no", seed=1)
    queries = [protocol.plan(one)[0] for one in many]
    affirmed = sum(query.references == ("yes",) for query in queries)
    assert 160 < affirmed < 240
    asked = {query.meta["asked_value"] for query in queries if query.references == ("no",)}
    assert asked == {"round", "small"}
    assert [protocol.plan(one)[0] for one in many] == queries
    assert [build_protocol("yes_no", seed=2).plan(one)[0] for one in many] != queries


def test_yes_no_verdicts(questions, answer, vocabulary):
    protocol = build_protocol("yes_no")
    for sample in questions:
        (query,) = protocol.plan(sample)
        assert query.prompt == f"Is the {sample.meta['attribute']} {query.meta['asked_value']}? Answer yes or no."
        verdict = protocol.judge(answer(query), vocabulary)
        assert verdict.correct and verdict.in_format and verdict.chance == 0.5
        blind = query.meta["asked_value"] == vocabulary.majority[sample.meta["attribute"]]
        assert verdict.prior == (blind == (query.references == ("yes",)))
        assert not protocol.judge(answer(query, "big"), vocabulary).in_format


def test_description_is_asked_once_an_image_and_never_swapped(questions):
    queries = plan_queries(questions, ["description"], swapped=["description"])
    assert [query.id for query in queries] == [f"{i}.png/description" for i in range(4)]


def test_the_plan_names_each_query_once(questions):
    queries = plan_queries(questions, PROTOCOLS, swapped=["open"])
    ids = [query.id for query in queries]
    assert len(ids) == len(set(ids)) == 8 * 4 + 4 + 8
    assert "s0/open/swapped" in ids
    swapped = next(query for query in queries if query.id == "s0/open/swapped")
    assert swapped.sample.images != questions[0].images
    assert swapped.meta["answer"] == "big"
    assert plan_queries(questions, PROTOCOLS, swapped=["open"]) == queries


def test_the_plan_refuses(questions):
    with pytest.raises(ConfigError, match="unknown protocol 'opne'"):
        plan_queries(questions, ["opne"])
    with pytest.raises(ConfigError, match="under 'swapped'"):
        plan_queries(questions, ["open"], swapped=["yes_no"])
    with pytest.raises(DataError, match="unique"):
        plan_queries([questions[0], dataclasses.replace(questions[1], id="s0")], ["open"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attribute": " "}, "'attribute'"),
        ({"options": ["big"]}, "'options'"),
        ({"options": ["big", "big"]}, "'options'"),
        ({"answer": "huge"}, "'answer'"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(questions, change, says):
    sample = dataclasses.replace(questions[0], meta={**questions[0].meta, **change})
    with pytest.raises(DataError, match=f"question 's0'.*{says}"):
        plan_queries([sample])


def test_a_question_needs_an_image_and_a_majority_value(questions):
    with pytest.raises(DataError, match="needs an image"):
        plan_queries([dataclasses.replace(questions[0], images=())])
    with pytest.raises(DataError, match="lack the attribute 'granule type'"):
        Vocabulary.of(questions, {"cell size": "big"})
