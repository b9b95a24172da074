"""Conversations without an image that teach matching on words well beyond a cell's attributes.

A small decoder learns to find an option's letter in minutes if it also learns simpler look-ups: to repeat a list or
pieces of it, and to name the words of letters. docs/decisions.md ("The mini model") says what did not work.
"""

import random

from medtune.data.multiple_choice import (
    ANSWER_PHRASE,
    LETTERS,
    lettered,
    multiple_choice_answer,
    multiple_choice_prompt,
)
from medtune.data.sample import Message
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.datasets.cells.instructions import Turn, to_messages, value_and_letter
from medtune.datasets.cells.wording import open_answer
from medtune.datasets.cells.words import GENERAL, WORDS

_OPTIONS, _QUERIES, _SEGMENTS = 5, 10, 10


_VALUES = {value for listed in ATTRIBUTES.values() for value in listed}
_VOCABULARY = sorted({*GENERAL.split(), *WORDS, *_VALUES} - {"a", "I", "no", "yes"})
_SPLIT = frozenset(
    """
also analysis analyze assessment attached between body briefly carefully change characteristics clinical common complete
concise content create depicted detailed determine diagnosis different display during examine expert features first
following generate illustrate impression include information inspect interpret key microscope microscopy morphology
notable observations observed other overview parts photograph present presented question region sample smear specimen
stained structure summary under visible visual
""".split()
)
_WHOLE = [word for word in _VOCABULARY if word.isalpha() and len(word) > 2 and word not in _SPLIT]
"""Words that are one token of the included tokenizer."""


def _turns(start: str, asked: list[str], answers: list[str]) -> tuple[Message, ...]:
    return to_messages([(start + asked[0], answers[0]), *zip(asked[1:], answers[1:], strict=True)])


def _repeated(rng: random.Random) -> tuple[Message, ...]:
    # Always 20 tokens: a model learns to copy at a fixed distance first.
    words = "".join(f" {word}" for word in rng.sample(_WHOLE, k=20))
    return to_messages([(words, words)])


def _segments(rng: random.Random) -> tuple[Message, ...]:
    # Pieces of a list at changing distances: without them a model knows places in a list, and not its words.
    words = rng.sample(_WHOLE, k=rng.randint(8, 20))
    starts = rng.choices(range(len(words) - 1), k=_SEGMENTS)
    pieces = [words[start : start + rng.randint(2, 6)] for start in starts]
    first = "".join(f" {word}" for word in words)
    return _turns(
        first, [f" {piece[0]}" for piece in pieces], ["".join(f" {w}" for w in piece[1:]) for piece in pieces]
    )


def _word_of_letter(rng: random.Random) -> tuple[Message, ...]:
    words = rng.sample(_WHOLE, k=_OPTIONS)
    asked = rng.choices(range(_OPTIONS), k=_QUERIES)
    return _turns(f"{lettered(words)}\n", [LETTERS[index] for index in asked], [f" {words[index]}" for index in asked])


def _letter_of_word(rng: random.Random) -> tuple[Message, ...]:
    words = rng.sample(_WHOLE, k=_OPTIONS)
    asked = rng.choices(range(_OPTIONS), k=_QUERIES)
    return _turns(f"{lettered(words)}\n", [f" {words[index]}" for index in asked], [LETTERS[index] for index in asked])


def drill(rng: random.Random) -> tuple[Message, ...]:
    """Return a list of words and, right after each word or letter that is asked for, what belongs to it.

    For a transform without headers. One of four: the list again, pieces of a list, a letter's word, a word's letter.
    """
    return rng.choice((_repeated, _segments, _word_of_letter, _letter_of_word))(rng)


def sentence_drill(rng: random.Random) -> tuple[Message, ...]:
    """Return a list of options, and words with their letters: after "=", or at the end of the evaluation's sentence.

    For a transform without headers and a model that has learned `drill`: the letter no longer follows right after its
    word.
    """
    near = rng.random() < 0.35
    words = rng.sample(_WHOLE, k=_OPTIONS if near else rng.randint(3, 6))
    asked = rng.choices(range(len(words)), k=_QUERIES if near else 7)
    between, end = ("=", "") if near else (f". {ANSWER_PHRASE} ", ".")
    first, *others = [f" {words[index]}{between}" for index in asked]
    questions = [f"{lettered(words)}\n{first}", *(f"{end}{word}" for word in others)]
    return to_messages([(question, LETTERS[index]) for question, index in zip(questions, asked, strict=True)])


def lookup_conversation(rng: random.Random) -> tuple[Message, ...]:
    """Return a list of options and six turns, each with a word and the sentence with its letter."""
    words = rng.sample(_VOCABULARY, k=rng.randint(2, 6))
    asked = rng.choices(words, k=6)
    return _turns(f"{lettered(words)}\n", asked, [f"{word}. {multiple_choice_answer(words, word)}" for word in asked])


def fact_conversation(rng: random.Random) -> tuple[Message, ...]:
    """Return questions about made-up statements ("The tree is red."): in words, with options, by yes or no."""
    names = rng.sample(_WHOLE, k=rng.randint(2, 5))
    values = {name: rng.choice(_VOCABULARY) for name in names}
    statement = " ".join(open_answer(name, values[name]) for name in names)
    turns: list[Turn] = []
    for name in rng.sample(names, k=min(3, len(names))):
        value, kind = values[name], rng.choices(("open", "choice", "yes_no"), (2, 5, 3))[0]
        if kind == "open":
            turns.append((f"What is the {name}?", open_answer(name, value)))
        elif kind == "choice":
            others = rng.sample([word for word in _VOCABULARY if word != value], k=rng.randint(1, 5))
            choices = rng.sample([value, *others], k=len(others) + 1)
            turns.append(
                (multiple_choice_prompt(f"What is the {name}?", choices), value_and_letter(name, value, choices))
            )
        else:
            wrong = [word for word in (*values.values(), *rng.sample(_VOCABULARY, k=2)) if word != value]
            claimed = value if rng.random() < 0.5 else rng.choice(wrong)
            answer = "Yes." if claimed == value else "No."
            turns.append((f"Is the {name} {claimed}? Answer yes or no.", answer))
    return to_messages([(f"{statement} {turns[0][0]}", turns[0][1]), *turns[1:]])
