"""Reads the scores in a judge's reply, or says by name why it cannot. Nothing is guessed.

Accepted is a first line that holds the scores and nothing else, in digits of any script: ``8 7``, ``8, 7``, ``8 / 7``,
``7.5 8``, ``7,5 8``, ``8/10 7/10``, ``Scores: 8 7``, ``Answer 1: 8, Answer 2: 7`` (also on two lines), or JSON such as
``[8, 7]``, ``{"scores": [8, 7]}`` and ``{"answer_1": 8, "answer_2": 7}``. Text may follow on further lines.
"""

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

REASONS = {
    "empty": "the reply is empty",
    "refusal": "the judge declined to answer",
    "cut_off": "the reply reached its maximum length before the scores",
    "broken_json": "the reply begins like JSON and is none, or has other keys",
    "other_language": "the reply is text in another script than Latin",
    "prose": "the first line is text and not scores",
    "no_verdict": "the reply has no verdict such as [[A]], or none that stands by itself at its beginning or end",
    "too_few_numbers": "the first line has fewer numbers than there are answers",
    "too_many_numbers": "the first line has more numbers than there are answers",
    "ambiguous": "the first line can be read in two ways, such as 8/10, or the reply has two different verdicts",
    "out_of_range": "a score is outside the scale",
    "rejected": "the server rejected the request",
    "reference_rejected": "the server rejected the request for a reference answer",
    "reference_empty": "the judge declined to write a reference answer, or wrote nothing",
    "reference_cut_off": "the reference answer reached its maximum length",
}
"""Why a reply has no scores."""
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_COMMA_DECIMAL = re.compile(r"[-+]?\d+,\d+")
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_ITEM = re.compile(r"\A\s*[-•]\s+(?=\**[A-Za-z])")  # the sign of an item in a list
_TITLE = re.compile(r"\A(?:scores?|ratings?)\s*[:=]\s*", re.IGNORECASE)
_LABELLED = r"(?:(?:score|rating)\s+(?:of|for)\s+)?(?:answer|assistant|response|score)[ _]?{number}\s*[:=]\s*"
_REFUSAL = re.compile(
    r"\A\W*(?:(?:i'?m|i am) (?:very |really )?sorry|sorry|i (?:cannot|can'?t|could not|am unable|'m unable|won'?t)\b"
    r"|i'm (?:unable|not able)|as an ai\b|unable to|my apologies|i apologi[sz]e)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ReadScores:
    """Scores in a reply.

    Attributes:
        scores: One score for each answer, in the order in which the judge saw them; None if they cannot be read.
        reason: Key of :data:`REASONS`; empty if they were read.
    """

    scores: tuple[float, ...] | None
    reason: str = ""


def read_scores(text: str | None, count: int, low: float, high: float, finish_reason: str = "stop") -> ReadScores:
    """Read the scores in a judge's reply.

    Args:
        text: The reply; None if the judge declined to answer.
        count: Number of scores.
        low: Lowest score.
        high: Highest score.
        finish_reason: Why the reply ended; ``length`` if it reached its maximum length.
    """
    plain, reason = opened(text, finish_reason)
    if reason:
        return ReadScores(None, reason)
    found: list[float] | str = _in_json(plain, count) if plain[:1] in "[{" else _in_lines(plain, count, high)
    if isinstance(found, str):
        weak = found in ("prose", "broken_json", "too_few_numbers")
        return ReadScores(None, "cut_off" if weak and finish_reason == "length" else found)
    if not all(low <= score <= high for score in found):
        return ReadScores(None, "out_of_range")
    return ReadScores(tuple(found))


def opened(text: str | None, finish_reason: str) -> tuple[str, str]:
    """Return a reply without its thoughts and the fence of a code block, and why there is nothing in it to read.

    Args:
        text: The reply; None if the judge declined to answer.
        finish_reason: Why the reply ended; ``length`` if it reached its maximum length.
    """
    if text is None or finish_reason == "content_filter":
        return "", "refusal"
    plain = unicodedata.normalize("NFKC", _THOUGHTS.sub("", text)).replace("’", "'").strip()
    fenced = _FENCE.match(plain)
    plain = fenced[1].strip() if fenced else plain
    return plain, "" if plain else "cut_off" if finish_reason == "length" else "empty"


def _in_json(plain: str, count: int) -> list[float] | str:
    try:
        value, _ = json.JSONDecoder(parse_constant=lambda _: None).raw_decode(plain)
    except (ValueError, RecursionError):
        return "broken_json"
    if isinstance(value, dict):
        names = [f"answer_{number}" for number in range(1, count + 1)]
        if set(value) >= set(names):
            value = [value[name] for name in names]
        else:
            value = value.get("scores", value.get("score") if count == 1 else None)
    values = value if isinstance(value, list) else [value]
    numbers = [_json_number(number) for number in values]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return "broken_json"
    return known if len(known) == count else _miscounted(len(known), count)


def _json_number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(rf"\s*{_NUMBER}\s*", value):
        return float(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e9 else math.inf


def _in_lines(plain: str, count: int, high: float) -> list[float] | str:
    lines = [stripped for line in plain.splitlines() if (stripped := _ITEM.sub("", line).strip(" \t*_`#>|"))]
    if not lines:
        return "prose"
    labelled = _labelled(" ".join(lines[:count]), count, high) or _labelled(lines[0], count, high)
    if labelled is not None:
        return labelled
    line = _TITLE.sub("", lines[0]).strip(" *_`.()[]")
    if re.search(r"[^\W\d_]", line):
        return worded(plain)
    if (
        _COMMA_DECIMAL.search(line)
        and re.fullmatch(r"[-+]?\d+(?:,\d+)?(?:\s+[-+]?\d+(?:,\d+)?)*", line)
        and " " in line
    ):
        line = line.replace(",", ".")  # decimals with a comma, separated by spaces
    out_of = re.compile(rf"({_NUMBER})\s*/\s*{re.escape(f'{high:g}')}(?![\d.])")
    shares = out_of.findall(line)
    if len(shares) == count and not re.search(r"\d", out_of.sub("", line)):
        return [float(share) for share in shares] if count == 1 or len(shares) > 1 else "ambiguous"
    if shares:
        return "ambiguous"
    if re.search(r"\d\s*[-–]\s*\d", line):
        return "ambiguous"
    numbers = re.findall(_NUMBER, line)
    if re.fullmatch(rf"{_NUMBER}(?:\s*[,;/|、]\s*{_NUMBER}|\s+{_NUMBER})*", line) is None:
        return "prose"
    return [float(number) for number in numbers] if len(numbers) == count else _miscounted(len(numbers), count)


def _labelled(text: str, count: int, high: float) -> list[float] | None:
    """Return the scores of a text that names each answer before its score, and nothing else."""
    score = rf"\**\s*({_NUMBER})(?:\s*/\s*{re.escape(f'{high:g}')})?(?![\w/])"
    pattern = r"[\s,;.*_`|-]*".join(_LABELLED.format(number=number) + score for number in range(1, count + 1))
    match = re.fullmatch(pattern + r"[\s,;.*_`|]*", text.strip(" *_`"), re.IGNORECASE)
    return None if match is None else [float(score) for score in match.groups()]


def worded(plain: str) -> str:
    """Return why a reply whose first line is text cannot be read."""
    if _REFUSAL.match(plain):
        return "refusal"
    letters = [character for character in plain if character.isalpha()]
    latin = sum("LATIN" in unicodedata.name(character, "") for character in letters)
    return "other_language" if latin < len(letters) / 2 else "prose"


def _miscounted(found: int, count: int) -> str:
    return "too_few_numbers" if found < count else "too_many_numbers"
