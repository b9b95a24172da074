"""Multiple-choice questions: which options are offered, in which order, and how they are written."""

import random
import string
from collections.abc import Sequence

from medtune.errors import DataError

LETTERS = string.ascii_uppercase
ANSWER_PHRASE = "The correct answer is"


def open_question(attribute: str) -> str:
    """Return the question that both the open and the multiple-choice protocol ask (InstFree, section 4.2)."""
    return f"What is the {attribute}?"


def multiple_choice_prompt(question: str, options: Sequence[str]) -> str:
    """Write a question with lettered options, in the published evaluation's wording.

    Args:
        question: for example ``open_question("cell size")``.
        options: two to 26 distinct values; the first becomes A.

    Raises:
        DataError: if there are fewer than two or more than 26 options, or repeated ones.
    """
    check_options(options)
    letters = " or ".join(LETTERS[: len(options)])
    return (
        f"{question}\n{lettered(options)}\n"
        f'Response with only the letter of the correct choice, starting with "{ANSWER_PHRASE} [{letters}].".'
    )


def lettered(options: Sequence[str]) -> str:
    """Write options one per line, each after its letter: ``A. big``."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def multiple_choice_answer(options: Sequence[str], answer: str) -> str:
    """Return the sentence that a model is asked to begin its answer with, with the right letter."""
    return f"{ANSWER_PHRASE} {option_letter(options, answer)}."


def option_letter(options: Sequence[str], answer: str) -> str:
    """Return the letter of the answer.

    Raises:
        DataError: if the answer is not among the options.
    """
    if answer not in options:
        raise DataError(f"The answer {answer!r} is not among the options {list(options)}.")
    return LETTERS[list(options).index(answer)]


def fixed_order(values: Sequence[str]) -> list[str]:
    """Return all values of an attribute in the fixed order of the options.

    Alphabetical, except that "yes" comes before "no": the order of the published evaluation.
    """
    return sorted(set(values), key=lambda value: ({"yes": 0, "no": 1}.get(value, -1), value))


def sampled_options(answer: str, values: Sequence[str], rng: random.Random, distractors: int = 4) -> list[str]:
    """Return the answer and some other values of its attribute, shuffled.

    Used for attributes with more values than a question has options (InstFree, section 4.2: usually five options).

    Args:
        answer: the right value.
        values: all values of the attribute; the answer may be among them.
        rng: the sample's own generator.
        distractors: number of wrong values; all of them if there are fewer.
    """
    others = [value for value in fixed_order(values) if value != answer]
    options = [answer, *rng.sample(others, k=min(distractors, len(others)))]
    rng.shuffle(options)
    return options


def check_options(options: Sequence[str]) -> None:
    """Refuse options that cannot be lettered.

    Raises:
        DataError: for fewer than two or more than 26 options, or repeated ones.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"A question needs 2 to {len(LETTERS)} options, this one has {len(options)}.")
    if len(set(options)) != len(options):
        raise DataError(f"The options {list(options)} hold the same value twice.")
