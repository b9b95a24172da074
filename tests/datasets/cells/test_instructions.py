"""Conversations: right answers, fair letters and a base that never writes a report when asked to describe."""

import random
import re
from collections import Counter

from medtune.data.multiple_choice import LETTERS
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.datasets.cells.instructions import conversation, yes_no_turn
from medtune.datasets.cells.text_tasks import text_conversation
from medtune.datasets.cells.wording import DESCRIBE

_SOURCE = rendered_cells_dataset(600, 11, "instructions")
_TEXT = rendered_cells_dataset(900, 11, "text")


def _turns(source: object, index: int) -> list[tuple[str, str]]:
    messages = source[index].messages  # type: ignore[index]
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    return [(user.content, reply.content) for user, reply in zip(messages[::2], messages[1::2], strict=True)]


def _options(question: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-J])\. (.+)$", question, flags=re.MULTILINE))


def test_conversations_have_six_to_ten_turns() -> None:
    lengths = Counter(len(_turns(_SOURCE, index)) for index in range(600))
    assert min(lengths) >= 6 and max(lengths) <= 11
    assert len(lengths) >= 4


def test_open_and_letter_answers_are_right() -> None:
    letters = Counter()
    for index in range(600):
        cell = _SOURCE.attributes(index)
        cell["cell type"] = cell["label"]
        for question, answer in _turns(_SOURCE, index):
            if match := re.fullmatch(r"The ([a-z ]+) is ([A-Za-z -]+)\.", answer):
                if match[1] in cell:
                    assert cell[match[1]] == match[2], (question, answer)
            if question.startswith("What is the ") and (listed := _options(question)):
                name = re.match(r"What is the ([a-z ]+)\?", question)
                letter = re.search(r"([A-Z])\.?$", answer)
                assert name and letter
                assert listed[letter[1]] == cell[name[1]]
                letters[letter[1], len(listed)] += 1
    two = letters["A", 2] / (letters["A", 2] + letters["B", 2])
    assert 0.4 < two < 0.6


def test_yes_and_no_are_balanced_and_right() -> None:
    rng = random.Random(0)
    given: Counter[str] = Counter()
    for index in range(600):
        cell = _SOURCE.attributes(index)
        for name in ("cell size", "nucleus shape", "cytoplasm vacuole"):
            question, answer = yes_no_turn(cell, name, rng)
            yes = answer.startswith("Yes")
            given[answer[:2]] += 1
            if question.startswith(f"Is the {name} "):
                assert (f"{cell[name]}?" in question.removeprefix(f"Is the {name} ")) == yes
    assert 0.45 < given["Ye"] / given.total() < 0.55


def test_descriptions_are_sentences_and_never_reports() -> None:
    asked = 0
    for index in range(600):
        cell = _SOURCE.attributes(index)
        described = [answer for question, answer in _turns(_SOURCE, index) if question in DESCRIBE]
        asked += len(described)
        for answer in described:
            assert answer.endswith(".") and answer[0].isupper()
            assert cell["label"] in answer
            assert not any(f"{value} {name}" in answer for name, value in cell.items())
            assert all(len(sentence.split()) >= 3 for sentence in answer[:-1].split(". "))
    assert asked == 600


def test_no_answer_of_any_kind_is_a_report() -> None:
    for kind in ("instructions", "text", "attributes"):
        source = rendered_cells_dataset(300, 2, kind)
        for index in range(300):
            for _, answer in _turns(source, index):
                assert "cell size," not in answer and "granule colour," not in answer


def test_option_lookups_are_right() -> None:
    looked_up = 0
    for index in range(900):
        listed: dict[str, str] = {}
        for question, answer in _turns(_TEXT, index):
            listed = _options(question) or listed
            if match := re.search(r"(?:Which letter is|Only the letter of) (.+)\?$", question):
                letter = re.search(r"([A-Z])\.?$", answer)
                assert letter and listed[letter[1]] == match[1]
                looked_up += 1
            elif match := re.search(r"What is option ([A-Z])\?$", question):
                assert answer == f"Option {match[1]} is {listed[match[1]]}."
    assert looked_up > 300


def test_stated_attributes_are_answered_as_stated() -> None:
    asked = 0
    for index in range(900):
        turns = _turns(_TEXT, index)
        stated = dict(re.findall(r"The ([a-z ]+) is ([A-Za-z -]+)\.", turns[0][0]))
        for _, answer in turns:
            match = re.fullmatch(r"The ([a-z ]+) is ([A-Za-z -]+)\.", answer)
            if match and match[1] in stated:
                assert stated[match[1]] == match[2]
                asked += 1
    assert asked > 50


def test_words_follow_the_generator_alone() -> None:
    cell = _SOURCE.attributes(0)
    assert conversation(cell, random.Random(1)) == conversation(cell, random.Random(1))
    assert text_conversation(cell, random.Random(1)) == text_conversation(cell, random.Random(1))
    assert set(cell) == set(ATTRIBUTES) and len(LETTERS) == 26
