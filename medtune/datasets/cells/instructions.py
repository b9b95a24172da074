"""Conversations about one rendered cell, from which a model learns to follow instructions."""

import random
from collections.abc import Callable, Sequence

from medtune.data.multiple_choice import (
    lettered,
    multiple_choice_answer,
    multiple_choice_prompt,
    open_question,
    option_letter,
)
from medtune.data.reports import attribute_report
from medtune.data.sample import Message
from medtune.datasets.cells.attributes import ABSENT, Attributes, asked_attributes, options
from medtune.datasets.cells.wording import (
    BRIEF_QUESTIONS,
    DESCRIBE,
    LIST_ATTRIBUTES,
    OPEN_QUESTIONS,
    PHRASES,
    describe,
    open_answer,
)

Turn = tuple[str, str]

_SHUFFLED = 0.7
_SYNONYMS = {"label": "cell type"}
_PRESENCE = {
    "granularity": ("Are there granules in this cell?", "Does the cell have granules?"),
    "cytoplasm vacuole": ("Are there vacuoles in the cytoplasm?", "Does the cell have vacuoles?"),
}


def to_messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Convert question-answer turns to alternating user and assistant messages."""
    return tuple(Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True))


def _spoken(name: str, rng: random.Random) -> str:
    """Return an attribute's name or, now and then, the everyday word for it."""
    return _SYNONYMS[name] if name in _SYNONYMS and rng.random() < 0.3 else name


def open_turn(cell: Attributes, name: str, rng: random.Random) -> Turn:
    """Ask for an attribute in words; half of the time in the words of the evaluation."""
    question = OPEN_QUESTIONS[0] if rng.random() < 0.5 else rng.choice(OPEN_QUESTIONS[1:])
    spoken = _spoken(name, rng)
    return question.format(name=spoken), open_answer(spoken, cell[name])


def brief_turn(cell: Attributes, name: str, rng: random.Random) -> Turn:
    """Ask for nothing but the value."""
    return rng.choice(BRIEF_QUESTIONS).format(name=_spoken(name, rng)), cell[name]


def offered(name: str, answer: str, rng: random.Random) -> list[str]:
    """Choose the options of a question: all in their fixed order, or some of them shuffled."""
    values = options(name)
    if rng.random() >= _SHUFFLED:
        return values
    others = [value for value in values if value != answer]
    picked = [answer, *rng.sample(others, k=rng.randint(1, len(others)))]
    rng.shuffle(picked)
    return picked


def value_and_letter(name: str, answer: str, choices: Sequence[str]) -> str:
    """Answer with the value and then its letter, which a small model can match with the options."""
    return f"{open_answer(name, answer)} {multiple_choice_answer(choices, answer)}"


def choice_turn(name: str, answer: str, choices: Sequence[str], rng: random.Random, value_first: bool = False) -> Turn:
    """Ask with lettered options: mostly in the evaluation's format, else shorter, or for letter and value.

    With `value_first` every answer but that to "Only the letter." names the value before the letter.
    """
    question = open_question(name)
    draw = rng.random()
    reply = value_and_letter(name, answer, choices) if value_first else multiple_choice_answer(choices, answer)
    if draw < 0.6:
        return multiple_choice_prompt(question, choices), reply
    asked = f"{question}\n{lettered(choices)}"
    if draw < 0.8:
        return asked, reply
    if draw < 0.9:
        return f"{asked}\nOnly the letter.", option_letter(choices, answer)
    return f"{asked}\nName the value, then the letter.", value_and_letter(name, answer, choices)


def yes_no_turn(cell: Attributes, name: str, rng: random.Random) -> Turn:
    """Ask whether an attribute has a value; "Yes" and "No" are equally frequent, and some answers give the reason."""
    if name in _PRESENCE and rng.random() < 0.5:
        return rng.choice(_PRESENCE[name]), f"{cell[name].capitalize()}."
    claimed = claim(cell, name, rng)
    true = claimed == cell[name]
    question = f"Is the {name} {claimed}?"
    if rng.random() < 0.65:
        return question, "Yes." if true else "No."
    return f"{question} Say why.", f"{'Yes' if true else 'No'}, the {name} is {cell[name]}."


def _choice_about(cell: Attributes, name: str, rng: random.Random) -> Turn:
    return choice_turn(name, cell[name], offered(name, cell[name], rng), rng)


def _choice_by_value(cell: Attributes, name: str, rng: random.Random) -> Turn:
    return choice_turn(name, cell[name], offered(name, cell[name], rng), rng, value_first=True)


def claim(cell: Attributes, name: str, rng: random.Random) -> str:
    """Return the value that an attribute has or, as often, one that it does not have."""
    if rng.random() < 0.5:
        return cell[name]
    return rng.choice([value for value in options(name) if value != cell[name]])


def checks(cell: Attributes, rng: random.Random) -> tuple[Message, ...]:
    """Return claims about a cell, as many right as wrong: a list in one turn, and a single one.

    A list gives a signal at every attribute. From single questions alone a small model does not learn to compare.
    """
    names = asked_attributes(cell)
    rng.shuffle(names)
    listed, single = names[:-1], names[-1]
    claims = [(name, claim(cell, name, rng)) for name in listed]
    answers = [f"{name} {value}: {'Yes' if cell[name] == value else 'No'}" for name, value in claims]
    question = f"Yes or no? {', '.join(f'{name} {value}' for name, value in claims)}"
    turns = [(question, ", ".join(answers)), closed_turn(cell, single, rng)]
    return to_messages(turns if rng.random() < 0.5 else turns[::-1])


def check_drill(cell: Attributes, rng: random.Random) -> tuple[Message, ...]:
    """Return claims about all attributes, each answered right after its value; for a transform without headers."""
    names = asked_attributes(cell)
    rng.shuffle(names)
    claims = [(name, claim(cell, name, rng)) for name in names]
    return to_messages([(f" {name} {value}", "Yes" if cell[name] == value else "No") for name, value in claims])


def closed_drill(cell: Attributes, rng: random.Random) -> tuple[Message, ...]:
    """Return closed questions about all attributes in the evaluation's words; for a transform without headers."""
    names = asked_attributes(cell)
    rng.shuffle(names)
    turns = [closed_turn(cell, name, rng) for name in names]
    return to_messages([(f" {question} ", answer.rstrip(".")) for question, answer in turns])


def closed_turn(cell: Attributes, name: str, rng: random.Random) -> Turn:
    """Ask whether an attribute has a value, in the words of the evaluation."""
    if name in _PRESENCE:
        return f"Is there {name}? Answer yes or no.", f"{cell[name].capitalize()}."
    value = claim(cell, name, rng)
    return f"Is the {name} {value}? Answer yes or no.", "Yes." if value == cell[name] else "No."


def _description_turn(cell: Attributes, rng: random.Random) -> Turn:
    return rng.choice(DESCRIBE), describe(cell, rng)


_ABOUT_ONE: tuple[tuple[Callable[[Attributes, str, random.Random], Turn], int], ...] = (
    (open_turn, 36),
    (_choice_about, 30),
    (yes_no_turn, 20),
    (brief_turn, 14),
)


_BY_VALUE = ((open_turn, 30), (_choice_by_value, 34), (yes_no_turn, 4), (closed_turn, 20), (brief_turn, 12))


def conversation(cell: Attributes, rng: random.Random, value_first: bool = False) -> tuple[Message, ...]:
    """Return six to ten turns about a cell: questions on its attributes and one request for a description.

    No attribute is asked about twice, so that no answer can be copied from an earlier one. With `value_first` answers
    to multiple-choice questions name the value before the letter, and closed questions are mostly the evaluation's.
    """
    names = asked_attributes(cell)
    rng.shuffle(names)
    names = names[: rng.randint(5, min(9, len(names)))]
    forms = _BY_VALUE if value_first else _ABOUT_ONE
    kinds = rng.choices([kind for kind, _ in forms], [weight for _, weight in forms], k=len(names))
    turns = [kind(cell, name, rng) for kind, name in zip(kinds, names, strict=True)]
    if cell["granularity"] == "no" and rng.random() < 0.1:
        absent = rng.choice(("granule type", "granule colour"))
        turns.append((open_question(absent), open_answer(absent, ABSENT)))
    rng.shuffle(turns)
    # A description reveals many answers: it usually comes first or last, where it reveals the fewest.
    place = 0 if rng.random() < 0.3 else len(turns)
    turns.insert(place, _description_turn(cell, rng))
    return to_messages(turns)


def attribute_list(cell: Attributes, rng: random.Random) -> tuple[Message, ...]:
    """Return one turn that answers with only the twelve values, in their fixed order."""
    return to_messages([(rng.choice(LIST_ATTRIBUTES), ", ".join(cell.values()))])


def phrase_list(cell: Attributes, rng: random.Random) -> tuple[Message, ...]:
    """Return one turn that answers a request for phrases: some findings in any order, or all in their fixed order."""
    question, separator = rng.choice(PHRASES)
    names = [name for name in cell if attribute_report({name: cell[name]}, value_only=("label",))]
    if rng.random() < 0.5:
        names = rng.sample(names, k=rng.randint(3, len(names)))
    phrases = [attribute_report({name: cell[name]}, value_only=("label",)) for name in names]
    return to_messages([(question, separator.join(phrases))])
