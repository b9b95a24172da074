"""Tells sentences from recited reports by word rules, without a tagger: readable and the same for every model."""

import functools
import re
from collections.abc import Sequence

from medtune.evaluation.parsing import normalise

FINITE_VERBS = frozenset(
    "is are was were has have had see sees shows show showed displays display depicts depict contains contain "
    "appears appear presents present exhibits exhibit reveals reveal demonstrates demonstrate illustrates "
    "illustrate features feature includes include consists consist looks look seems seem suggests suggest "
    "indicates indicate measures lies can could may might does do surrounds surround fills fill stains stained "
    "belongs represents represent".split()
)
"""Finite verbs of image descriptions. A closed list misses rare verbs, but it treats all models equally."""

_FILLERS = frozenset("a an the and or with of in no not very".split())
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_FRAGMENT = re.compile(r"[,;.\n]+")
_END = re.compile(r"[.!?][\"'”’)\]]*$")


def is_report_fragment(text: str, report_terms: Sequence[str]) -> bool:
    """Return whether a piece of text is a report fragment: no finite verb, and only report words as content words.

    Args:
        text: A piece between commas or full stops.
        report_terms: The attribute names and values of which reports consist.
    """
    words = _words(text)
    content = [word for word in words if word not in _FILLERS]
    return bool(content) and not FINITE_VERBS & set(words) and set(content) <= _term_words(tuple(report_terms))


def is_report(text: str, report_terms: Sequence[str]) -> bool:
    """Return whether a text is a recited report: at least two report fragments, and more than half of its pieces.

    A single fragment is not a report: ``big`` is a good answer to a question.
    """
    pieces = [piece for piece in _FRAGMENT.split(normalise(text)) if _words(piece)]
    fragments = sum(is_report_fragment(piece, report_terms) for piece in pieces)
    return fragments >= 2 and 2 * fragments > len(pieces)


def natural_description(text: str, report_terms: Sequence[str]) -> bool:
    """Return whether an answer to ``What does this image show?`` is natural language.

    It must have at least four words, a finite verb (:data:`FINITE_VERBS`) and the end mark of a sentence. It must not
    be a recited report (:func:`is_report`) or an answer in the multiple-choice format.

    Args:
        text: The model's answer.
        report_terms: The attribute names and values of which reports consist.
    """
    folded = normalise(text).strip()
    words = _words(folded)
    if len(words) < 4 or not FINITE_VERBS & set(words) or not _END.search(folded):
        return False
    return "the correct answer is" not in folded and not is_report(folded, report_terms)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=64)
def _term_words(report_terms: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for term in report_terms for word in _words(normalise(term)))
