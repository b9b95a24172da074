"""Sentences of English clinical text, found by explicit rules, with nothing to install or download.

In doubtful cases two sentences are not separated: a unit that is too long is still a unit of the report, half a
sentence is not. The text is only cut, never rewritten.
"""

import re

NEVER_LAST = frozenset("dr drs mr mrs ms prof st vs approx ca cf e.g eg i.e ie viz fig figs incl".split())
"""Abbreviations that are always followed by more text: a full stop after them does not end a sentence."""

RARELY_LAST = frozenset(
    "mm cm m km ml dl l cc mg mcg ug kg g lb lbs oz ft hz khz mhz kv hu s sec secs min mins h hr hrs d wk wks mo "
    "mos yr yrs a.m p.m etc al rt lt bilat lat ant post sup inf med prox dist temp wt ht max avg vol no nos pt "
    "pts hx tx dx fx sx rx abd resp poss prob neg pos neuro staph strep spp ssp dept jr sr ref eq ext int".split()
)
"""Abbreviations and units that may end a sentence: they do so if a capital letter or a list number follows."""

_STOP = re.compile(r"""[.!?]+["'”’)\]]*(?=\s|$)|(?<=[a-z]{2})\.(?=[A-Z][a-z])""")
_BREAK = re.compile(r"\n[ \t]*\n\s*|\n\s*(?=(?:[-*•]|\(?\d{1,2}[.)])\s)")
_AHEAD = 80  # characters of the following text that are read: only its first word matters
_BRACKETS = re.compile(r"\([^()]{0,300}\)")
_LAST_WORD = re.compile(r"""[^\s(\["']+$""")
_MARKER = re.compile(r"\s*(?:[-*•]\s*)?\(?(?:\d{1,2}|[A-Za-z])[.)]+")
_LIST_NUMBER = re.compile(r"\(?\d{1,2}[.)]\s")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_NAMED = re.compile(r"(?:\b(?:drs?|mr|mrs|ms|prof)|\b[A-Z])\.\s+[A-Z]\.$", re.IGNORECASE)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Find the sentences of a text.

    A sentence ends at ``.``, ``!`` or ``?`` before white space (also without any, as in "normal.No effusion"), at an
    empty line, and before a line that begins like an item of a list. It does not end after an abbreviation, at a
    decimal point, inside brackets, after a list number ("2. Stable heart.", which stays with its item), or after "No."
    before a number. A heading that ends in a colon belongs to what follows.

    Args:
        text: the report.

    Returns:
        Start and end of each sentence, without the white space around it; the rest of the text is white space.
    """
    spans, start = [], 0
    for end in _ends(text):
        piece, rest = text[start:end], text[end : end + _AHEAD].lstrip()
        if not piece.strip() or (end < len(text) and _continues(piece, rest)):
            continue
        left = len(piece) - len(piece.lstrip())
        spans.append((start + left, start + len(piece.rstrip())))
        start = end
    return spans


def _ends(text: str) -> list[int]:
    """Return every position outside brackets at which a sentence may end, in order; the last is the end of the text."""
    places = {match.end() for match in _STOP.finditer(text)} | {match.start() for match in _BREAK.finditer(text)}
    for match in _BRACKETS.finditer(text):
        places.difference_update(range(match.start() + 1, match.end()))
    return sorted(places | {len(text)})


def _continues(piece: str, rest: str) -> bool:
    """Return whether the sentence that seems to end with ``piece`` continues in ``rest``."""
    if piece.endswith(":") or _MARKER.fullmatch(piece) or re.search(r":\s*\(?1[.)]$", piece):
        return True
    if not piece.endswith("."):
        return False
    match = _LAST_WORD.search(piece.rstrip("."))
    word = match[0] if match else ""
    if word.lower() in NEVER_LAST:
        return True
    if word in ("No", "Nos", "no", "nos") and rest[:1].isdigit():
        return True
    if piece.endswith("..") or word.lower() in RARELY_LAST or _INITIALS.fullmatch(word):
        opened = rest.lstrip("\"'“‘([")
        starts = opened[:1].isupper() or bool(_LIST_NUMBER.match(rest))
        return not starts or bool(_NAMED.search(piece))
    return False
