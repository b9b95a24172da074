import dataclasses

import pytest

from medtune.data.sample import Message
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Vocabulary
from medtune.evaluation.protocols.registry import PROTOCOLS, build_protocol, plan_queries
from tests.evaluation.tools import question


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
    assert build_protocol("open").plan(sample)[0].prompt == "<image>What is the mass margin?"
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
    swapped = dataclasses.replace(questions[0], meta={**questions[0].meta, "swapped": True})
    assert build_protocol("description").plan(swapped) == []


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


@pytest.mark.parametrize("name", ["open", "multiple_choice", "letter_likelihood"])
def test_the_majority_baseline_is_that_of_the_training_split_not_the_first_option(questions, answer, name):
    protocol = build_protocol(name)
    vocabulary = Vocabulary.of(questions, {"cell size": "small", "granule type": "round"})
    for sample in questions:
        (query,) = protocol.plan(sample)
        right = sample.meta["answer"] == vocabulary.majority[sample.meta["attribute"]]
        assert protocol.judge(answer(query), vocabulary).prior is right
        missing = dataclasses.replace(answer(query, ""), meta={**query.meta, "missing": True})
        judged = protocol.judge(missing, vocabulary)
        assert (judged.prior, judged.predicted, judged.in_format, judged.correct) == (right, None, False, False)
        assert judged.chance == 1 / len(sample.meta["options"])


def test_a_swapped_verdict_says_so_and_whether_the_shown_image_has_another_answer(questions, answer, vocabulary):
    queries = [one for one in plan_queries(questions, ["open"], swapped=["open"]) if one.meta["swapped"]]
    for query in queries:
        verdict = build_protocol("open").judge(answer(query), vocabulary)
        assert verdict.swapped and verdict.id == f"{verdict.sample_id}/open/swapped"
        assert verdict.shown_differs is (query.meta["shown_answer"] != query.meta["answer"])
    assert {query.meta["shown_answer"] != query.meta["answer"] for query in queries} == {True, False}
    (query,) = build_protocol("open").plan(questions[0])
    assert build_protocol("open").judge(answer(query), vocabulary).shown_differs is False


def test_the_coin_is_the_questions_own_on_every_image(questions):
    protocol = build_protocol("yes_no", seed=4)
    for sample in questions:
        moved = dataclasses.replace(sample, images=("elsewhere.png",))
        assert protocol.plan(moved)[0].prompt == protocol.plan(sample)[0].prompt
    prompts = {protocol.plan(dataclasses.replace(questions[4], id=f"q{place}"))[0].prompt for place in range(30)}
    assert len(prompts) == 3, "questions on one image have coins of their own"


def test_the_letter_of_the_likeliest_sentence_is_in_the_form(questions, answer, vocabulary):
    protocol = build_protocol("letter_likelihood")
    assert protocol.judge(answer(protocol.plan(questions[0])[0]), vocabulary).in_format


def test_more_options_than_letters_are_refused_and_the_last_user_turn_is_the_question(questions):
    many = [f"v{place}" for place in range(27)]
    sample = dataclasses.replace(questions[0], meta={**questions[0].meta, "options": many, "answer": "v3"})
    with pytest.raises(DataError, match="2 to 26"):
        plan_queries([sample], ["open"])
    turns = (Message("user", "First?"), Message("assistant", "big"), Message("user", "Second?"))
    asked = plan_queries([dataclasses.replace(questions[0], messages=turns)], ["open"])
    assert asked[0].prompt == "Second?"


def test_another_image_is_required_and_chosen_by_the_seed(questions):
    with pytest.raises(ConfigError, match="compares two images"):
        plan_queries(questions, ["response_likelihood"])
    many = [dataclasses.replace(questions[at % 8], id=f"q{at}", images=(f"{at}.png",)) for at in range(32)]
    shown = [
        [one.sample.images for one in plan_queries(many, ["open"], swapped=["open"], seed=seed)] for seed in (0, 1)
    ]
    assert shown[0] != shown[1]


def test_a_dotted_path_names_a_protocol_and_nothing_else():
    found = build_protocol("medtune.evaluation.protocols.open_question.OpenQuestion", 3)
    assert type(found) is type(build_protocol("open")) and found.seed == 3
    for wrong in ("medtune.evaluation.protocols.base.Vocabulary", "medtune.evaluation.parsing.parse_value"):
        with pytest.raises(ConfigError, match=f"{wrong} is no subclass"):
            build_protocol(wrong)


def presence(number: int, options: list[str], answer: str, asked: str = "What is the granularity?"):
    sample = question(f"p{number}", "granularity", options, answer, f"{number}.png")
    return dataclasses.replace(sample, messages=(Message("user", asked),))


@pytest.mark.parametrize("value", ["yes", "no"])
@pytest.mark.parametrize("options", [["yes", "no"], ["No", "Yes"], ["no", "mild", "severe", "yes"]])
def test_an_attribute_whose_values_are_yes_and_no_is_asked_as_it_is_and_its_value_is_the_answer(options, value):
    protocol, held = build_protocol("yes_no"), next(one for one in options if one.lower() == value)
    vocabulary = Vocabulary({"granularity": held}, ("granularity",), ())
    for number in range(12):
        (query,) = protocol.plan(presence(number, options, held))
        if query.meta["asked_value"] is None:
            assert query.prompt == "Is there granularity? Answer yes or no."
            assert query.references == (value,)
            row = Prediction(query.id, query.task, query.prompt, f"{value}.", (), query.meta)
            verdict = protocol.judge(row, vocabulary)
            assert verdict.correct and verdict.gold == value and verdict.prior
        else:
            assert query.meta["asked_value"] in ("mild", "severe") and query.references == ("no",)


def test_no_closed_question_holds_a_double_negative():
    asked = [presence(n, ["yes", "no"], "yes" if n % 2 else "no") for n in range(20)]
    asked += [presence(20 + n, ["no", "mild"], "mild" if n % 2 else "no") for n in range(20)]
    prompts = [query.prompt for query in plan_queries(asked, ["yes_no"])]
    assert not [prompt for prompt in prompts if " no?" in prompt or " yes?" in prompt]
    mild = [query for query in plan_queries(asked[20:], ["yes_no"]) if query.meta["asked_value"] is None]
    assert {(query.meta["answer"], query.references[0]) for query in mild} == {("mild", "yes"), ("no", "no")}


def test_a_third_value_is_asked_by_its_name_and_never_counts_as_yes():
    asked = [presence(n, ["yes", "no", "uncertain"], "uncertain") for n in range(12)]
    queries = plan_queries(asked, ["yes_no"])
    assert {query.prompt for query in queries} == {"Is the granularity uncertain? Answer yes or no."}
    assert {query.references for query in queries} == {("yes",)}


def test_a_closed_question_of_the_data_is_asked_in_its_own_words():
    own = presence(0, ["yes", "no"], "no", "Is there a pneumothorax?")
    (query,) = build_protocol("yes_no").plan(own)
    assert query.prompt == "Is there a pneumothorax? Answer yes or no." and query.references == ("no",)
    choice = presence(0, ["yes", "no"], "no", "Is it left or right?")
    assert build_protocol("yes_no").plan(choice)[0].prompt == "Is there granularity? Answer yes or no."
