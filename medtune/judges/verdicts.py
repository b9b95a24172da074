"""Reads the verdict in a judge's reply, ``[[A]]``, ``[[B]]`` or ``[[C]]`` for a tie, or says by name why it cannot.

A verdict must stand at the very beginning of the reply, or alone in its last line, there also after words such as
``Final verdict:``. All verdicts in the reply must be the same. JSON such as ``{"verdict": "A"}`` is read too.
"""

import json
import re

from medtune.judges.parsing import ReadScores, opened, worded

POINTS = {"A": (1.0, 0.0), "B": (0.0, 1.0), "C": (0.5, 0.5)}
"""What a verdict gives the answer that was shown first and the one that was shown second."""
_ANY = re.compile(r"\[\[([A-Z])\]\]")
_DECORATION = " \t*_`#>\"'"
_LAST = re.compile(
    r"(?:(?:so|thus|therefore),?\s+)?(?:(?:my|the)\s+)?(?:(?:final\s+)?(?:verdict|judge?ment|decision|answer|choice))?"
    r"(?:\s+is)?\s*[:=-]?[\s*_`\"']*\[\[[A-Z]\]\][\s*_`\"'.!]*",
    re.IGNORECASE,
)


def read_verdict(text: str | None, finish_reason: str = "stop") -> ReadScores:
    """Read the verdict in a judge's reply.

    Args:
        text: The reply; None if the judge declined to answer.
        finish_reason: Why the reply ended; ``length`` if it reached its maximum length.

    Returns:
        The points of the two answers in the order in which the judge saw them (:data:`POINTS`), or why there are none.
    """
    plain, reason = opened(text, finish_reason)
    if reason:
        return ReadScores(None, reason)
    verdict, reason = _in_json(plain) if plain[0] == "{" else _in_text(plain)
    if reason:
        weak = reason in ("no_verdict", "prose", "broken_json")
        return ReadScores(None, "cut_off" if weak and finish_reason == "length" else reason)
    return ReadScores(POINTS[verdict])


def _in_json(plain: str) -> tuple[str, str]:
    try:
        value, _ = json.JSONDecoder().raw_decode(plain)
    except (ValueError, RecursionError):
        return "", "broken_json"
    verdict = value.get("verdict")
    letter = verdict.strip().strip("[]") if isinstance(verdict, str) else ""
    return (letter, "") if letter in POINTS else ("", "broken_json")


def _in_text(plain: str) -> tuple[str, str]:
    found = set(_ANY.findall(plain))
    if not found:
        reason = worded(plain)
        return "", "no_verdict" if reason == "prose" else reason
    if len(found) > 1:
        return "", "ambiguous"
    lines = [line for line in plain.splitlines() if line.strip(_DECORATION)]
    begins = _ANY.match(lines[0].lstrip(_DECORATION)) is not None
    if not begins and _LAST.fullmatch(lines[-1].strip(_DECORATION)) is None:
        return "", "no_verdict"
    letter = found.pop()
    return (letter, "") if letter in POINTS else ("", "out_of_range")
