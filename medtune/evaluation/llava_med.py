"""LLaVA-Med's scores of free answers (Li et al. 2023, section 4.2), number for number those of its evaluation code.

The text is normalised as in the VQA benchmark's evaluation. An open answer is scored by bags of words, a closed answer
by substrings. Papers on medical VQA report these numbers, so their quirks are kept and described here; the protocol
``vqa`` reports a strict closed accuracy beside them.
"""

import re
from collections import Counter
from typing import NamedTuple

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""Their code passes ``re.UNICODE`` (32) where ``re.sub`` takes the number of replacements."""
_ARTICLES = frozenset(("a", "an", "the"))
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
# A word with exactly one apostrophe missing gets it back.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED for at, letter in enumerate(word) if letter == "'"
} | {"hed": "he'd", "somebody'd": "somebodyd"}


class OpenScores(NamedTuple):
    """Scores of one open answer, each in [0, 1]."""

    f1: float
    precision: float
    recall: float


def normalise_answer(text: str) -> str:
    """Normalise an answer: no punctuation, lower case, number words as digits, no articles, apostrophes restored.

    A punctuation mark becomes a space. It is deleted without a space if it touches a space anywhere in the text, and
    every mark is if a comma stands between two digits anywhere. A full stop is deleted unless a digit follows it, at
    most 32 of them.

    Args:
        text: an answer or a reference.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        touches_a_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if in_number or touches_a_space else " ")
    plain = _FULL_STOP.sub("", plain, count=_MOST_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def open_scores(answer: str, reference: str) -> OpenScores:
    """Score an open answer by the words that it shares with the reference.

    Let tp be the number of words of the answer that occur in the reference, fp the number of its other words, and fn
    the number of words of the reference that do not occur in the answer. Words are counted as often as they occur, so a
    word that the answer repeats adds to tp and raises the recall. Then precision = tp / (tp + fp), recall = tp / (tp +
    fn), F1 = 2 precision recall / (precision + recall); all are 0 without a shared word. "Open" in LLaVA-Med's tables
    is the recall.

    Args:
        answer: the model's answer.
        reference: the right answer.
    """
    # their code normalises twice, which matters for texts with many full stops
    said, right = (Counter(normalise_answer(normalise_answer(text.lower())).split()) for text in (answer, reference))
    shared = sum(count for word, count in said.items() if word in right)
    if not shared:
        return OpenScores(0.0, 0.0, 0.0)
    missed = sum(count for word, count in right.items() if word not in said)
    precision, recall = shared / said.total(), shared / (shared + missed)
    return OpenScores(2 * precision * recall / (precision + recall), precision, recall)


def closed_hit(answer: str, reference: str) -> bool:
    """Whether a closed answer counts as right.

    Both texts are normalised. The answer is right if it contains "yes" or "no" and contains the reference, anywhere and
    as parts of words too. So "normal" contains "no", "I do not know" answers "no", and the answer "left" to a question
    whose right answer is "left" is wrong.

    Args:
        answer: the model's answer.
        reference: the right answer.
    """
    said, right = normalise_answer(answer.lower()), normalise_answer(reference.lower())
    return ("yes" in said or "no" in said) and right in said
