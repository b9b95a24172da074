"""Answers to FLARE's classification and multi-label questions."""

import re
from collections.abc import Iterable, Mapping, Sequence

from medtune.evaluation.flare.reading import (
    EMPTY,
    NO_LABEL,
    NO_OPTION,
    OTHER_TEXT,
    SEVERAL_OPTIONS,
    UNKNOWN_OPTION,
    Reading,
    cleaned,
)
from medtune.evaluation.negation import is_denied
from medtune.evaluation.parsing import normalise, phrase_pattern

COMMA_LABELS = ("Endodontic Treatment, Restorative Treatment, and Complications",)
"""Labels of FLARE's sets (periapical) that hold commas; they are never split."""
NO_LABELS = frozenset(("none", "no finding", "no findings", "none of the above", "no abnormality", "no abnormalities"))
"""Answers that name the empty set of labels, if the set has no such label."""
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTION = re.compile(r"(?<![A-Za-z0-9])\(?([A-Z])\s?[:).]\s+")
_MARKS = r"[\s*_$\\({\[\"'`<]*"
_LONE = re.compile(rf"{_MARKS}([A-Za-z])[\W_]*")
_HEAD = re.compile(rf"{_MARKS}([A-Z])[*_\"'`\])]*\s?[:.)\]][*_]*\s+(\S.*)")
_CLAIM = re.compile(
    r"(?:\b(?i:is|are|be|answer|option|choice|diagnosis|classification|grade|category)\b|\bboxed|\\text)\s*[:=]?"
    rf"{_MARKS}(?:(?i:option|answer)\s+)?([A-Z])(?![A-Za-z0-9])(?=[\s*_$)}}\]\"'`]*(?:[.:;,)}}\]\n]|$)"
    r"|\s+(?i:because|since|as|due|based)\b)"
)
_CLAIMED_TEXT = re.compile(r"\\?boxed\{([^{}\n]{1,80})\}|(?:\b(?i:is|be|are|an?)\b)\s*:?\s*\*\*([^*\n]{1,80})\*\*")
_SEPARATOR = re.compile(r"[;\n|]+")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")
_CONCLUSION = re.compile(r"(?i:\b(?:final answer|the answer)\b)(?:\s+is)?\s*:?\s*(.+)", re.DOTALL)
_LONGEST_LABEL = 9


def question_options(question: str) -> dict[str, str]:
    """Return the lettered options of a question, letter to text: ``A: x``, ``A) x`` or ``A. x``, from A on.

    A question without A and B has none.
    """
    found: dict[str, str] = {}
    marks = [match for match in _OPTION.finditer(question)]
    chain: list[re.Match[str]] = []
    for match in marks:
        if match[1] == _ALPHABET[len(chain)]:
            chain.append(match)
    for match, following in zip(chain, [*chain[1:], None], strict=True):
        text = question[match.end() : following.start() if following else len(question)]
        found[match[1]] = text.strip(" \n\t,;.")
    return found if len(found) > 1 else {}


def plain(text: str) -> str:
    """Return a label for comparison: normalised, without marks of emphasis and punctuation around it."""
    return normalise(text).strip(" \n\t*`\"'.,;:$()[]{}").strip()


def read_choice(answer: str, options: Mapping[str, str], labels: Sequence[str] = ()) -> Reading:
    r"""Read the answer to a classification question.

    Read are, in this order: a letter alone (``A``, ``(b)``); a letter with its text at the beginning (``A: benign``);
    the letter of a claim, such as ``the answer is A.``, ``Final answer: **A**`` or ``\boxed{A}``, if all claims name
    one letter; the text of an option, if exactly one is named and not denied.

    Args:
        answer: the model's answer.
        options: letter to text, of the question; empty if the question has no lettered options, and then any letter
            counts.
        labels: the texts that answers of this set can have, used without lettered options.

    Returns:
        The letter, or without lettered options a letter or a label; a label is normalised (:func:`plain`).
    """
    text = cleaned(answer)
    if not text:
        return Reading(reason=EMPTY)
    letter = _LONE.fullmatch(text)
    if letter:
        return _letter(letter[1].upper(), options)
    head = _HEAD.match(text.splitlines()[0])
    if head and (not options or head[1] in options):
        said = plain(head[2])
        others = {plain(value) for key, value in options.items() if key != head[1]}
        return Reading(reason=OTHER_TEXT) if said in others else Reading(head[1])
    claims = {match[1] for match in _CLAIM.finditer(text)}
    if len(claims) == 1:
        return _letter(claims.pop(), options)
    if claims:
        return Reading(reason=SEVERAL_OPTIONS)
    return _named(text, options, labels)


def _letter(letter: str, options: Mapping[str, str]) -> Reading:
    return Reading(letter) if not options or letter in options else Reading(reason=UNKNOWN_OPTION)


def _named(text: str, options: Mapping[str, str], labels: Sequence[str]) -> Reading:
    """Read the text of an option or label."""
    texts = {plain(value): key for key, value in options.items() if plain(value)}
    if not options:
        texts = {plain(label): plain(label) for label in labels if plain(label)}
    if plain(text) in texts:
        return Reading(texts[plain(text)])
    if not texts:
        return _short(text)
    folded = normalise(text)
    found = [match for match in phrase_pattern(tuple(texts)).finditer(folded)]
    named = {texts[_known(match["value"], texts)] for match in found if not is_denied(folded, *match.span())}
    if len(named) == 1:
        return Reading(named.pop())
    return Reading(reason=SEVERAL_OPTIONS if named else NO_OPTION)


def _known(value: str, texts: Mapping[str, str]) -> str:
    """Return the text that a found phrase stands for; inside a phrase a space and a hyphen are equal."""
    spaced = re.sub(r"[\s-]+", " ", value)
    return next(text for text in texts if re.sub(r"[\s-]+", " ", text) == spaced)


def _short(text: str) -> Reading:
    """Read a label that nothing is known of: a few words alone, or one that is claimed in a box or in bold letters."""
    if len(text.split()) <= 4 and "\n" not in text:
        return Reading(plain(text)) if plain(text) else Reading(reason=NO_OPTION)
    claimed = {plain(match[1] or match[2]) for match in _CLAIMED_TEXT.finditer(text)} - {""}
    if len(claimed) == 1:
        return Reading(claimed.pop())
    return Reading(reason=SEVERAL_OPTIONS if claimed else NO_OPTION)


def split_labels(text: str, known: Iterable[str] = ()) -> list[str]:
    """Split a list of labels, in the order of the text, each once (but for case).

    The text is split at semicolons, line ends and ``|``; at commas only where none of these is there, or where that
    gives known labels. Known labels with commas (:data:`COMMA_LABELS` and those in ``known``) are never split.

    Args:
        text: the list.
        known: the labels of the set, where they are known.
    """
    labels = {plain(label) for label in (*known, *COMMA_LABELS)}
    whole = [label for label in (*known, *COMMA_LABELS) if "," in label]
    for number, label in enumerate(whole):
        text = re.sub(re.escape(label), f"\x00{number}\x00", text, flags=re.IGNORECASE)

    def back(part: str) -> str:
        return re.sub("\x00(\\d+)\x00", lambda match: whole[int(match[1])], part)

    parts = []
    strong = _SEPARATOR.search(text) is not None
    for piece in _SEPARATOR.split(text):
        pieces = [re.sub(r"^\s*and\s+", "", one) for one in piece.split(",")]
        if not strong or (len(pieces) > 1 and all(plain(back(one)) in labels for one in pieces if plain(one))):
            parts += pieces
        else:
            parts.append(piece)
    found = {plain(back(part)): _BULLET.sub("", back(part)).strip(" \n\t*`\"'.,;:") for part in parts}
    return [label for key, label in found.items() if key and label]


def read_labels(answer: str, known: Sequence[str] = ()) -> Reading:
    """Read the answer to a multi-label question: a list of labels, or a list after ``the answer is``.

    Args:
        answer: the model's answer.
        known: the labels of the set; labels outside of them are kept, and count as wrong.

    Returns:
        The labels as a sorted tuple of normalised texts, each once; () for "none".
    """
    text = cleaned(answer)
    if not text:
        return Reading(reason=EMPTY)
    for candidate in _lists(text):
        labels = {plain(label) for label in split_labels(candidate, known)} - {""}
        stated = {plain(label) for label in known}
        if labels and labels <= NO_LABELS and not labels & stated:
            return Reading(())
        if labels and all(label in stated or _is_label(label) for label in labels):
            return Reading(tuple(sorted(labels)))
    return Reading(reason=NO_LABEL)


def _lists(text: str) -> list[str]:
    """Return parts of an answer that may be a list: the whole, what follows ``the answer is``, bulleted lines."""
    found = [text]
    conclusion = _CONCLUSION.search(text)
    if conclusion:
        found.append(re.split(r"\n\s*\n|\n(?i:final answer)", conclusion[1].strip())[0])
    bullets = [_BULLET.sub("", line) for line in text.splitlines() if _BULLET.match(line)]
    if bullets and ":" not in "".join(bullets):
        found.append("\n".join(bullets))
    return found


def _is_label(text: str) -> bool:
    """Return whether an unknown text may be a label: a few words and no sentence."""
    return len(text.split()) <= _LONGEST_LABEL and not re.search(
        r"[.:!?]\s|\b(?:is|are|was|cannot|can|appears?)\b", text
    )
