"""Answers to FLARE's counting and regression questions."""

import math
import re

from medtune.evaluation.flare.reading import (
    EMPTY,
    NEGATIVE,
    NO_NUMBER,
    RANGE,
    SEVERAL_NUMBERS,
    TOO_LARGE,
    Reading,
    cleaned,
)

LARGEST = 1_000_000.0
"""Numbers beyond it are no count and no measure of a 2D image (FLARE's counts end at 1,664): they come from run-ons."""
_SPACES = "\u00a0\u202f\u2009"  # the spaces that group digits
_NUMBER = rf"[-+\u2212]?(?:\d[\d.,{_SPACES}]*\d|\d)(?:[eE][-+]?\d{{1,4}})?|[-+\u2212]?\.\d+"
_FIND = re.compile(rf"(?<![\w.])(?:{_NUMBER})(?![\w]*\d)")
_FIRST_LINE = re.compile(
    rf"[\s*_$\\({{\[\"'`~]*({_NUMBER}|[-+]?\d{{1,3}}(?: \d{{3}})+)\s?(?:%|[A-Za-z]{{1,12}}\.?)?[\W_]*"
)
_RANGE = re.compile(rf"(?:{_NUMBER})\s?%?\s?(?:-|\u2013|\u2014|\bto\b)\s?(?:{_NUMBER})")
_CLAIM = re.compile(rf"(?i:\b(?:answer|total|boxed))[^\d\n+\-.]{{0,24}}({_NUMBER})")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_WORD = re.compile(rf"(?i:\b({'|'.join(_WORDS)})\b)")


def number_of(text: str) -> float | None:
    """Return a written number; None for none.

    ``1,234`` and ``1,234,567`` are thousands, ``3,5`` and ``0,123`` have a decimal comma, ``1.234,5`` and ``1,234.5``
    have both marks, the last of which is the decimal one; ``1.234`` has a decimal point.
    """
    plain = text.strip().replace("\u2212", "-")
    plain = re.sub(rf"[ {_SPACES}]", "", plain).rstrip(".,")
    dot, comma = plain.rfind("."), plain.rfind(",")
    if comma >= 0 and dot >= 0:
        thousands, decimal = (",", ".") if dot > comma else (".", ",")
        plain = plain.replace(thousands, "").replace(decimal, ".")
    elif comma >= 0:
        grouped = re.fullmatch(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+", plain)
        plain = plain.replace(",", "") if grouped else plain.replace(",", ".")
    elif plain.count(".") > 1 and re.fullmatch(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+", plain):
        plain = plain.replace(".", "")
    try:
        return float(plain)
    except ValueError:
        return None


def read_number(answer: str, count: bool = False) -> Reading:
    """Read a number.

    Read is the number on the first line, if there is nothing else but a unit; else the only number of the answer (the
    same one may be repeated); else the number after ``the answer``, ``the total`` or in a box. A number in words, up to
    twenty, counts if there are no digits. Values beyond :data:`LARGEST` are refused, so that a run-on cannot decide a
    mean.

    Args:
        answer: the model's answer.
        count: whether it is a count, which is not negative.

    Returns:
        A float.
    """
    text = cleaned(answer)
    if not text:
        return Reading(reason=EMPTY)
    first = _FIRST_LINE.fullmatch(text.splitlines()[0])
    if first:
        number = number_of(first[1])
        if number is not None:
            return _bounded(number, count)
    if _RANGE.search(text):
        return Reading(reason=RANGE)
    found = {number for match in _FIND.finditer(text) if (number := number_of(match[0])) is not None}
    if len(found) > 1:
        claimed = {number for match in _CLAIM.finditer(text) if (number := number_of(match[1])) is not None}
        found = claimed if len(claimed) == 1 else found
    if not found:
        found = {float(_WORDS.index(match[1].lower())) for match in _WORD.finditer(text)}
    if len(found) != 1:
        return Reading(reason=SEVERAL_NUMBERS if found else NO_NUMBER)
    return _bounded(found.pop(), count)


def _bounded(number: float, count: bool) -> Reading:
    if not math.isfinite(number) or abs(number) > LARGEST:
        return Reading(reason=TOO_LARGE)
    if count and number < 0:
        return Reading(reason=NEGATIVE)
    return Reading(number + 0.0)
