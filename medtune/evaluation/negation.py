"""Finds out whether a clause denies a value that it names: "no evidence of a malignant lesion" names no malignancy.

The rules follow NegEx (Chapman et al. 2001, J Biomed Inform 34, 301-310): a cue, a window of five words, and words that
end the window. Unlike NegEx it reads one clause at a time, because :mod:`medtune.evaluation.parsing` splits answers at
punctuation.
"""

import re

_WINDOW = 5
"""Number of words that may stand between a cue and a value (NegEx)."""
_WORD = r"(?:[^\W_]|['’-])+"
_BETWEEN = rf"(?:\W+{_WORD}){{0,{_WINDOW}}}\W+$"
_VERBS = r"(?:is|are|was|were|be|been|being|looks?|appears?|seems?)"

# Phrases that contain a cue and deny nothing, and "no" as an answer in itself ("No it is big").
_HARMLESS = re.compile(
    r"\b(?:not only|not just|not merely|no doubt|no question|without (?:a |any )?doubt|no other than|none other than)\b"
    r"|^\s*no\b(?=\s+(?:it|this|that|they|these|those|the|there|its|i)\b)"
)
# After these words a new statement begins: "not big but small".
_ENDS = re.compile(
    r"\b(?:but|however|although|though|except|instead(?! of)|rather(?! than)|whereas|while|because"
    r"|and (?:is|are|was|were|shows?|has|have|the|this|that|it|its|an?)(?! not\b))\b|:"
)
# Cues in front of a verb or an adjective; a copula may follow: "I do not think it is malignant".
_VERBAL = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|hardly|unlikely|no longer|doubt(?:s|ed|ful)?|exclud(?:e|es|ed|ing)"
    r"|rul(?:e|es|ed|ing) out|den(?:y|ies|ied)|unlike|rather than|instead of|other than|as opposed to)\b|n['’]t\b)"
)
# Cues in front of a noun; they end at a verb, so that "a cell without granules is big" is big.
_NOMINAL = re.compile(r"\b(?:no|without|none of|lacks?|lacking|lack of|absence of|free of|free from|negative for)\b")
# "no evidence that it is malignant": the clause after such a noun is denied too.
_EVIDENCE = re.compile(
    r"\bno (?:\w+ )?(?:evidence|signs?|indications?|suggestions?|suspicion|proof|features?|findings?|reason|way|hint)\b"
)
# "a malignant lesion is ruled out"; "big and no vacuole is seen" is about something else.
_SUBJECT = rf"^(?:\W+(?!(?:and|but|with|while|without|no)\b){_WORD}){{0,3}}?\W+"
_AFTER = re.compile(
    rf"{_SUBJECT}{_VERBS}(?: very| highly| most| clearly| completely)?"
    r" (?:ruled out|excluded|unlikely|absent|missing|denied"
    r"|not (?:\w+ )?(?:seen|present|likely|visible|identified|detected|found|evident|observed|suspected|shown))\b"
    rf"|{_SUBJECT}(?:can|could) be (?:ruled out|excluded)\b"
)


def is_denied(clause: str, start: int, end: int) -> bool:
    """Return whether a clause denies the value that it names at ``clause[start:end]``.

    Args:
        clause: A clause in lower case, without punctuation that separates clauses.
        start: Place of the value's first character.
        end: Place after its last character.
    """
    before = _HARMLESS.sub(lambda match: " " * len(match[0]), clause[:start])
    for stop in _ENDS.finditer(before):
        before = " " * stop.end() + before[stop.end() :]
    if _cue(_VERBAL, before) or _cue(_EVIDENCE, before):
        return True
    if any(not re.search(rf"\b{_VERBS}\b", before[cue.end() :]) for cue in _cue(_NOMINAL, before)):
        return True
    return _AFTER.search(clause[end:]) is not None


def _cue(cues: re.Pattern[str], before: str) -> list[re.Match[str]]:
    """Return the cues that have at most five words between them and the end of the text."""
    return [cue for cue in cues.finditer(before) if re.match(_BETWEEN, before[cue.end() :])]
