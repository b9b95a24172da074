"""Conversations that teach matching: every answer is right, and nothing gives it away but the match."""

import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from medtune.config import PACKAGE
from medtune.data.sample import Message
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.cells.instructions import check_drill, checks, closed_drill, closed_turn, conversation
from medtune.datasets.cells.lookups import _WHOLE, drill, fact_conversation, lookup_conversation, sentence_drill
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.mini import (
    mini_drill_transform,
    mini_internvl_drill_transform,
    mini_internvl_transform,
    mini_transform,
)

TOKENIZER = str(PACKAGE / "assets/mini_tokenizer")
SOURCE = rendered_cells_dataset(400, 5, "checks", natural=0.3)


def _pairs(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    return [(messages[i].content, messages[i + 1].content) for i in range(0, len(messages), 2)]


def _options(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z])\. (.+)$", text, re.MULTILINE))


def test_words_of_drills_are_single_tokens() -> None:
    tokenizer = mini_transform(TOKENIZER).tokenizer
    assert len(_WHOLE) > 100
    assert [word for word in _WHOLE if len(tokenizer.encode(f" {word}")) != 1] == []


def test_drills_answer_from_the_list_right_after_what_is_asked() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(200):
        turns = _pairs(drill(random.Random(seed)))
        (first, _) = turns[0]
        if len(turns) == 1:
            kinds["repeated"] += 1
            assert turns[0][0] == turns[0][1] and len(turns[0][0].split()) == 20
            continue
        options = _options(first)
        if not options:
            kinds["segments"] += 1
            *words, start_of_first = first.split()
            for question, answer in [(f" {start_of_first}", turns[0][1]), *turns[1:]]:
                assert f"{question}{answer} " in f" {' '.join(words)} " and answer.startswith(" ")
            assert len(set(words)) == len(words) >= 8 and len(turns) == 10
            continue
        start, _, last = first.rpartition("\n")
        for question, answer in [(last, turns[0][1]), *turns[1:]]:
            if question in options:
                kinds["word of letter"] += 1
                assert answer == f" {options[question]}"
            else:
                kinds["letter of word"] += 1
                assert f" {options[answer]}" == question
        assert start.count("\n") == len(options) - 1
    assert len(kinds) == 4 and min(kinds.values()) > 20


@pytest.mark.parametrize("build", [mini_drill_transform, mini_internvl_drill_transform])
def test_drill_transform_writes_messages_as_they_are_and_supervises_answers_alone(build: Callable) -> None:
    transform = build(TOKENIZER)
    source = rendered_cells_dataset(40, 1, "drills")
    for index in range(40):
        sample = source[index]
        item = transform(sample, [])
        text = transform.tokenizer.decode([int(token) for token in item["tokens"][1:]])
        assert text == "".join(message.content for message in sample.messages)
        learned = [token for token, label in zip(item["tokens"], item["labels"], strict=True) if label != IGNORE_INDEX]
        answers = [message.content for message in sample.messages if message.role == "assistant"]
        assert transform.tokenizer.decode([int(token) for token in learned]) == "".join(answers)


@pytest.mark.parametrize(
    "build, build_usual",
    [(mini_drill_transform, mini_transform), (mini_internvl_drill_transform, mini_internvl_transform)],
)
def test_conversations_are_written_as_by_the_usual_transform(build: Callable, build_usual: Callable) -> None:
    drills, usual = build(TOKENIZER), build_usual(TOKENIZER)
    for kind in ("lookups", "instructions_by_value"):
        source = rendered_cells_dataset(3, 1, kind)
        for index in range(3):
            images = source.open_images(source[index])
            found, expected = drills(source[index], images), usual(source[index], images)
            assert found["tokens"] == expected["tokens"] and found["labels"] == expected["labels"]


def test_sentence_drills_end_with_the_letter_of_their_word() -> None:
    ends: Counter[str] = Counter()
    for seed in range(60):
        turns = _pairs(sentence_drill(random.Random(seed)))
        start, _, first = turns[0][0].rpartition("\n")
        options = _options(start)
        for question, answer in [(first, turns[0][1]), *turns[1:]]:
            match = re.fullmatch(r"\.? (\w+)(=|\. The correct answer is )", question)
            assert match and options[answer] == match[1]
            ends[match[2]] += 1
    assert len(ends) == 2


def test_lookups_name_the_letter_of_the_word() -> None:
    for seed in range(100):
        turns = _pairs(lookup_conversation(random.Random(seed)))
        start, _, first = turns[0][0].rpartition("\n")
        options = _options(start)
        for question, answer in [(first, turns[0][1]), *turns[1:]]:
            match = re.fullmatch(r"(.+)\. The correct answer is ([A-Z])\.", answer)
            assert match and match[1] == question == options[match[2]]


def test_facts_are_answered_from_the_statements() -> None:
    given: Counter[str] = Counter()
    for seed in range(400):
        turns = _pairs(fact_conversation(random.Random(seed)))
        facts = dict(re.findall(r"The (\w+) is ([\w -]+)\.", turns[0][0]))
        for question, answer in turns:
            question = question.rpartition(". ")[2] if question is turns[0][0] and "\n" not in question else question
            if closed := re.search(r"Is the (\w+) ([\w -]+)\? Answer", question):
                given[answer] += 1
                assert answer == ("Yes." if facts[closed[1]] == closed[2] else "No.")
                continue
            name = re.search(r"What is the (\w+)\?", question)
            assert name and answer.startswith(f"The {name[1]} is {facts[name[1]]}.")
            if options := _options(question):
                letter = re.search(r"The correct answer is ([A-Z])\.$", answer)
                assert letter and options[letter[1]] == facts[name[1]]
    assert 0.44 < given["Yes."] / given.total() < 0.56


@pytest.mark.parametrize("index", range(40))
def test_checks_say_whether_the_cell_is_so(index: int) -> None:
    cell = SOURCE.attributes(index)
    for question, answer in _pairs(checks(cell, random.Random(index))):
        if match := re.fullmatch(r"Is the ([a-z ]+) ([\w -]+)\? Answer yes or no\.", question):
            name = max((name for name in cell if question.startswith(f"Is the {name} ")), key=len)
            value = question.removeprefix(f"Is the {name} ").partition("?")[0]
            assert answer == ("Yes." if cell[name] == value else "No."), match
        elif question.startswith("Is there"):
            assert answer == f"{cell[question[9:].partition('?')[0]].capitalize()}."
        else:
            for claim, listed in zip(question.removeprefix("Yes or no? ").split(", "), answer.split(", "), strict=True):
                said, _, verdict = listed.rpartition(": ")
                name = max((name for name in cell if claim.startswith(f"{name} ")), key=len)
                assert said == claim
                assert verdict == ("Yes" if claim == f"{name} {cell[name]}" else "No")


def test_closed_questions_are_as_often_right_as_wrong() -> None:
    rng = random.Random(0)
    given = Counter(closed_turn(SOURCE.attributes(index), "nucleus shape", rng)[1] for index in range(400))
    assert 0.42 < given["Yes."] / 400 < 0.58


def test_conversations_by_value_name_the_value_before_the_letter() -> None:
    seen = 0
    for index in range(100):
        cell = SOURCE.attributes(index)
        for question, answer in _pairs(conversation(cell, random.Random(index), value_first=True)):
            if (options := _options(question)) and "Only the letter" not in question:
                match = re.fullmatch(r"The ([a-z ]+) is ([\w -]+)\. The correct answer is ([A-Z])\.", answer)
                assert match and cell[match[1]] == match[2] == options[match[3]]
                seen += 1
    assert seen > 100


@pytest.mark.parametrize("kind", ["instructions_by_value", "text_by_value"])
def test_kinds_by_value_never_give_the_letter_alone_unless_asked(kind: str) -> None:
    source = rendered_cells_dataset(150, 2, kind)
    asked = 0
    for index in range(150):
        for question, answer in _pairs(source[index].messages):
            if _options(question) and "Only the letter" not in question:
                assert re.match(r"The [a-z ]+ is [\w -]+\. The correct answer is [A-Z]\.$", answer)
                asked += 1
    assert asked > 50


def test_check_drills_answer_right_after_the_value() -> None:
    given: Counter[str] = Counter()
    for index in range(100):
        cell = SOURCE.attributes(index)
        turns = _pairs(check_drill(cell, random.Random(index)))
        assert len(turns) == len([value for value in cell.values() if value != "nil"])
        for claimed, answer in turns:
            name = max((name for name in cell if claimed.startswith(f" {name} ")), key=len)
            assert answer == ("Yes" if claimed == f" {name} {cell[name]}" else "No")
            given[answer] += 1
    assert 0.45 < given["Yes"] / given.total() < 0.55


def test_closed_drills_ask_as_the_evaluation_does_about_every_attribute() -> None:
    given: Counter[str] = Counter()
    for index in range(100):
        cell = SOURCE.attributes(index)
        turns = _pairs(closed_drill(cell, random.Random(index)))
        asked = {}
        for question, answer in turns:
            claimed = re.fullmatch(r" Is (?:the (.+)|there (.+))\? Answer yes or no\. ", question)
            assert claimed
            name = max((name for name in cell if (claimed[1] or claimed[2]).startswith(name)), key=len)
            value = claimed[1].removeprefix(f"{name} ") if claimed[1] else "yes"
            assert answer == ("Yes" if value == cell[name] else "No")
            asked[name] = answer
            given[answer] += 1
        assert len(asked) == len(turns) == len([value for value in cell.values() if value != "nil"])
    assert 0.42 < given["Yes"] / given.total() < 0.58


@pytest.mark.parametrize("build, places", [(mini_drill_transform, 1), (mini_internvl_drill_transform, 16)])
def test_drill_transform_puts_the_image_first(build: Callable, places: int) -> None:
    transform = build(TOKENIZER)
    source = rendered_cells_dataset(2, 1, "check_drills")
    sample = source[0]
    item = transform(sample, source.open_images(sample))
    before = [transform.tokenizer.bos_id, *[transform.image_id] * places]
    first = transform.tokenizer.encode(sample.messages[0].content)
    assert item["tokens"][: len(before) + len(first)] == [*before, *first]
    assert item["labels"][: len(before)] == [IGNORE_INDEX] * len(before)
    assert len(item["images"]) == 1 and transform.token_count(sample) == len(item["tokens"])
