"""Conversations without an image: copying, looking up options, answering from statements.

They teach the language model a skill that questions about images need too: to match a value with an option's text,
instead of learning which letter belongs to which value.
"""

import random
from collections.abc import Callable

from medtune.data.multiple_choice import LETTERS, lettered, multiple_choice_answer
from medtune.data.sample import Message
from medtune.datasets.cells.attributes import ATTRIBUTES, Attributes, asked_attributes, cell_report
from medtune.datasets.cells.instructions import (
    Turn,
    brief_turn,
    choice_turn,
    offered,
    open_turn,
    to_messages,
    yes_no_turn,
)
from medtune.datasets.cells.wording import open_answer
from medtune.datasets.cells.words import WORDS

_SMALL_TALK = (
    ("Hello.", "Hello. How can I help?"),
    ("Thank you.", "You are welcome."),
    ("Who are you?", "I am a model that answers questions about images."),
    ("Can you help me?", "Yes, I can help."),
)


def _pool() -> list[str]:
    values = {value for name, listed in ATTRIBUTES.items() for value in listed if name not in ("granularity",)}
    return [*WORDS, *sorted(values)]


def _copying(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    for _ in range(rng.randint(2, 4)):
        words = rng.sample(_pool(), k=rng.randint(1, 3))
        text = ", ".join(words)
        turns.append(rng.choice([(f"Repeat: {text}", text), (f"Say {text}.", text), (f"Write {text}.", f"{text}.")]))
    return turns


def _lookups(rng: random.Random) -> list[Turn]:
    """List lettered options once, then ask for letters and for options in turn."""
    choices = rng.sample(_pool(), k=rng.randint(2, 6))
    turns: list[Turn] = []
    for value in rng.sample(choices, k=len(choices)):
        letter = LETTERS[choices.index(value)]
        forms = (
            (f"Which letter is {value}?", multiple_choice_answer(choices, value)),
            (f"Only the letter of {value}?", letter),
            (f"What is option {letter}?", f"Option {letter} is {value}."),
        )
        turns.append(rng.choice(forms))
    first, answer = turns[0]
    return [(f"{lettered(choices)}\n{first}", answer), *turns[1:]]


def _stated(cell: Attributes, names: list[str], rng: random.Random) -> str:
    """State some attributes, in sentences or as a report."""
    if rng.random() < 0.25:
        return f"Report: {cell_report({name: cell[name] for name in names} | {'label': cell['label']})}."
    return " ".join(open_answer(name, cell[name]) for name in names)


def _from_statement(cell: Attributes, rng: random.Random, value_first: bool = False) -> list[Turn]:
    """State attributes, then ask about them in any order and form, options shuffled more often than not."""
    names = rng.sample(asked_attributes(cell), k=rng.randint(1, 4))
    statement = _stated(cell, names, rng)
    if statement.startswith("Report:"):
        names = [name for name in names if cell[name] != "no"] or ["label"]
    turns = []
    for name in rng.sample(names, k=len(names)):
        ask = rng.choices((open_turn, yes_no_turn, brief_turn, None), (2, 3, 1, 5))[0]
        if ask is None:
            turns.append(choice_turn(name, cell[name], offered(name, cell[name], rng), rng, value_first))
        else:
            turns.append(ask(cell, name, rng))
    return [(f"{statement} {turns[0][0]}", turns[0][1]), *turns[1:]]


def text_conversation(cell: Attributes, rng: random.Random, value_first: bool = False) -> tuple[Message, ...]:
    """Return a conversation without an image: copying, option look-ups, or questions on stated attributes.

    With `value_first` answers to multiple-choice questions name the value before the letter, and there are no look-ups.
    """
    tasks: list[tuple[Callable[[], list[Turn]], int]] = [
        (lambda: _from_statement(cell, rng, value_first), 55),
        (lambda: _lookups(rng), 0 if value_first else 32),
        (lambda: _copying(rng), 10),
        (lambda: [rng.choice(_SMALL_TALK)], 3),
    ]
    task = rng.choices([task for task, _ in tasks], [weight for _, weight in tasks])[0]
    return to_messages(task())
