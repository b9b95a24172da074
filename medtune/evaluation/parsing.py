"""Reads answers: option letters, yes or no, and the value that a free answer names.

All functions are pure. ``None`` always means that the answer could not be read; the caller counts it as unread and
scores it as wrong.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Sequence

from medtune.evaluation.negation import is_denied

_LEAD = "The correct answer is"
_CLAUSE = re.compile(r"[,;.!?\n]+")
_COPULA = re.compile(r"\b(?:is|are|was|were)\b|:")


def parse_letter(text: str, options: int) -> int | None:
    """Read a multiple-choice answer as InstFree's official evaluation does (paper, section 4.2).

    The parser takes the text after the last ``The correct answer is`` and deletes ``<|eot_id|>``, ``.``, ``*``, ``[``
    and ``]``. The rest, stripped and in upper case, must be exactly one letter, and the letter must belong to an
    option. The official code splits the joined text of prompt and answer, and the prompt also contains that phrase. So
    an answer without the phrase, such as a bare ``B``, is wrong there, and it is wrong here too.

    Args:
        text: The model's answer, without the prompt.
        options: Number of options of the question (1 to 26).

    Returns:
        The index of the chosen option, or None.
    """
    _, lead, tail = text.rpartition(_LEAD)
    if not lead:
        return None
    tail = tail.replace("<|eot_id|>", "").translate(str.maketrans("", "", ".*[]")).strip().upper()
    index = string.ascii_uppercase.find(tail) if len(tail) == 1 else -1
    return index if 0 <= index < options else None


def parse_yes_no(text: str) -> str | None:
    """Return ``"yes"`` or ``"no"`` if the answer begins with that word and does not contain the other word.

    Only whole words count: ``normal`` is not ``no``.
    """
    words = re.findall(r"[^\W\d_]+", normalise(text))
    if not words or words[0] not in ("yes", "no"):
        return None
    other = "no" if words[0] == "yes" else "yes"
    return None if other in words else words[0]


def normalise(text: str) -> str:
    """Normalise an answer for matching: Unicode NFKC, lower case, one space for underscores and runs of spaces.

    Line ends are kept, because they separate clauses.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("_", " ").replace("<|eot id|>", " ")
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Compile a pattern that finds any of the phrases, the longest first, at word boundaries.

    A hyphen is part of a word, so ``round`` is not found in ``unsegmented-round``. Inside a phrase a space and a hyphen
    are equal, so ``light blue`` is found in ``light-blue``. The group ``value`` holds the phrase that matched.
    """
    return _phrase_pattern(tuple(phrases))


@functools.lru_cache(maxsize=1024)
def _phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    ordered = sorted(
        {normalise(phrase) for phrase in phrases if phrase.strip()}, key=lambda folded: (-len(folded), folded)
    )
    alternatives = "|".join(r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", phrase))) for phrase in ordered)
    return re.compile(rf"(?<![\w-])(?P<value>{alternatives or '(?!)'})(?![\w-])")


def parse_value(text: str, attribute: str, options: Sequence[str], other_attributes: Sequence[str] = ()) -> int | None:
    """Find the option that a free answer to ``What is the {attribute}?`` names.

    The answer is split into clauses at commas, full stops, semicolons, exclamation and question marks, and line ends. A
    clause that names another attribute but not the requested one is ignored, so that a recited report does not score by
    the value of another attribute. The remaining clauses are searched in this order: clauses that name the attribute;
    clauses with a copula (``is``, ``are``, ``was``, ``were``, ``:``); the first clause of the answer. The first clause
    with a value counts. Within a clause, the first value after the last copula counts, or the first value of the clause
    if no value follows the copula. A value that the clause denies does not count (:mod:`medtune.evaluation.negation`):
    ``not big`` does not name ``big``, and ``no evidence of a malignant lesion`` does not name ``malignant``.

    Args:
        text: The model's answer.
        attribute: The requested attribute.
        options: The values that the attribute can take.
        other_attributes: Names of the data set's other attributes.

    Returns:
        The index of the option, or None.
    """
    keys = {_key(option): index for index, option in reversed(list(enumerate(options)))}
    values = phrase_pattern(list(keys))
    asked = phrase_pattern([attribute])
    others = phrase_pattern([name for name in other_attributes if _key(name) != _key(attribute)])
    folded = normalise(text)
    for option in options:  # a value may contain a comma ("papule, erythema"): keep it in one clause
        folded = folded.replace(normalise(option), _key(option)) if _CLAUSE.search(option) else folded
    clauses = [clause.strip() for clause in _CLAUSE.split(folded) if clause.strip()]
    naming = [clause for clause in clauses if asked.search(clause)]
    free = [clause for clause in clauses if not asked.search(clause) and not others.search(clause)]
    stating = [clause for clause in free if _COPULA.search(clause)]
    first = [clause for clause in free if clause is clauses[0]]
    for clause in naming + stating + first:
        value = _first_value(asked.sub(" | ", clause), values)
        if value is not None:
            return keys[_key(value)]
    return None


def _first_value(clause: str, values: re.Pattern[str]) -> str | None:
    copulas = list(_COPULA.finditer(clause))
    named = [match for match in values.finditer(clause) if not is_denied(clause, match.start(), match.end())]
    following = [match for match in named if copulas and match.start() >= copulas[-1].end()]
    return next((match["value"] for match in following or named), None)


@functools.lru_cache(maxsize=4096)
def _key(phrase: str) -> str:
    return " ".join(re.split(r"[\s-]+", _CLAUSE.sub(" ", normalise(phrase)).strip()))
