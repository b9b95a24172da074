"""Names the findings that a chest X-ray report states, by rules: no model, no download, the same answer everywhere.

A finding is stated if one of its wordings occurs and is not denied. What is denied follows
:mod:`medtune.evaluation.negation`, and in addition a list: "no consolidation, effusion, or pneumothorax" denies all
three. A finding that is called possible counts as stated, and one that has gone ("resolved") does not. The rules were
written on one half of the Open-I reports; docs/evaluation.md has the agreement with the labels of the other half.
"""

import re
from collections.abc import Mapping

from medtune.evaluation.negation import is_denied

_ENLARGED = r"(?:enlarged|enlargement|prominent|prominence|increased|borderline|large)"
_HEART = r"(?:heart|cardiac|cardio-?mediastinal|cardio-?pericardial)"
_AORTA = r"(?:aorta|aortic(?: arch| knob)?)"
_SPINE = r"(?:spine|spinal|vertebra\w*|thoracic|lumbar|cervical|disc|disk|endplate)"
_FEW = r"(?:[ /-]+(?!(?:no|not|without|normal|and|but)\b)[\w']+){0,5}?[ /-]+"
"""Up to five words between two parts of one wording; none of them may start another statement."""

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "cardiomegaly": (
        r"cardiomegaly",
        rf"{_HEART}{_FEW}{_ENLARGED}",
        r"(?:enlarge[dr]?|enlargement of|prominent|borderline|large)(?: the)?(?: \w+)? (?:heart|cardiac|cardio\w+)",
    ),
    "pleural effusion": (r"(?<!pericardial )effusions?", r"pleural fluid", r"hydropneumothora\w+", r"h[a]?emothora\w+"),
    "pneumothorax": (r"(?:hydro|hemo)?pneumothora(?:x|ces)",),
    "atelectasis": (r"atelecta\w+",),
    "airspace opacity": (
        r"opacit(?:y|ies)",
        r"opacifications?",
        r"infiltrates?",
        r"consolidations?",
        r"air-?\s?space disease",
    ),
    "pneumonia": (r"pneumonias?", r"pneumonitis"),
    "congestion or edema": (
        r"(?:pulmonary|interstitial|alveolar) o?edema",
        r"(?:vascular|venous|pulmonary) congestion",
        r"(?:heart|cardiac) failure",
        r"chf",
        rf"vascul\w+{_FEW}(?:engorge\w+|congest\w+|prominen\w+|increased|redistribut\w+|cephaliz\w+)",
        rf"(?:engorge\w+|prominen\w+|increased|cephaliz\w+){_FEW}vascul\w+",
        r"vascular (?:redistribution|cephalization|prominence)",
    ),
    "nodule or mass": (
        r"nodules?",
        r"(?<!soft tissue )mass(?:es)?",
        r"nodular (?:density|opacity|densities|opacities)",
    ),
    "granuloma": (r"granulomas?", r"granulomata", r"granulomatous"),
    "emphysema or hyperinflation": (
        r"emphysem\w+",
        r"copd",
        r"chronic obstructive",
        r"hyper-?\s?(?:inflat|expan|aerat|lucen|disten)\w+",
        rf"flatten\w+{_FEW}(?:hemi)?diaphragms?",
        rf"(?:hemi)?diaphragms?{_FEW}flattened",
    ),
    "low lung volumes": (
        r"(?:low|decreased|diminished|reduced|small|shallow)(?: lung)? volumes?",
        rf"volumes?{_FEW}(?:low|decreased|diminished|reduced)",
        r"hypo-?\s?(?:inflat|ventilat|aerat|expan)\w+",
        r"(?:poor|low|shallow) inspirat\w+",
    ),
    "scar or fibrosis": (r"scar(?:s|ring)?", r"fibro(?:sis|tic)", r"cicatri\w+"),
    "pleural thickening": (
        r"pleural(?: \w+)? thickening",
        r"(?:pleural|apical)(?: \w+)?[ /](?:scarring/)?thickening",
        r"pleural (?:plaques?|cap\w*)",
    ),
    "fracture": (r"fractures?",),
    "degenerative spine": (
        r"spondylosis",
        r"osteophyt\w+",
        rf"degenerative{_FEW}{_SPINE}",
        rf"{_SPINE}{_FEW}(?:degenerat\w+|spurring)",
        rf"(?:degenerated|spurring){_FEW}{_SPINE}",
    ),
    "scoliosis": (
        r"\w*scolio\w+",
        r"(?:dextro|levo)-?\s?(?:convex\s)?curvature",
        rf"{_SPINE} curvature",
        r"curvature of the[\w ]* spine",
    ),
    "aortic disease": (
        rf"(?:tortuous|tortuosity|ectatic|ectasia|unfolded|calcified|atheroscleros[ie]s|atherosclerotic){_FEW}{_AORTA}",
        rf"{_AORTA}{_FEW}(?:tortuous|tortuosity|ectatic|ectasia|unfolded|calcifi\w+|atheroscleros[ie]s|atherosclerotic)",
        r"atheroscleros[ie]s",
        r"atherosclerotic",
    ),
    "hiatal hernia": (r"(?:hiatal|hiatus|diaphragmatic) hernias?",),
    "device": (
        r"catheters?",
        r"picc",
        r"port-?a-?cath",
        r"pacemakers?",
        r"(?:pacer|icd|aicd|defibrillator)\b",
        r"(?:endotracheal|enteric|nasogastric|feeding|tracheostomy|chest|ng|et) tubes?",
        r"central (?:venous )?lines?",
        r"(?:picc|svc) line",
        r"tip[\w ]* (?:svc|vena cava|cavo-?atrial|atrium)",
        r"stents?",
        r"shunt(?: tub\w+)?",
        r"prosthe(?:sis|ses|tic)",
        r"(?:neuro)?stimulators?",
        r"generator",
        r"(?:monitor|pacing|pacemaker) leads?",
        r"(?:closure|loop recorder|medical|fixation) devices?",
    ),
}
"""Finding to its wordings, as regular expressions on lower-case text."""
FINDINGS = tuple(WORDINGS)

_SENTENCE = re.compile(r"[.;!?](?=\s|$)|\n")
_LIST = re.compile(
    r"\b(?:no|without|negative for|free of|free from|absence of|lack of|nor|neither|clear of|rather than)\b"
)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|shows?|appears?|remains?|demonstrates?|represents?|seen|noted)\b")
_NEW_STATEMENT = re.compile(r"\b(?:but|however|although|except|with|is|are|has|have)\b")
_STATES = re.compile(
    r"^\s*(?:and )?(?:but|however|although|though|except|with|stable|unchanged|mild|mildly|moderate|minimal|trace|there"
    r"|again|bibasilar|chronic|calcified|low)\b"
)
_NORMAL = re.compile(r"^(?: (?:\w+ ){0,3}?)?(?:within (?:the )?(?:upper )?(?:normal limits|limits of normal)|normal)\b")
_GONE = re.compile(r"^\W+(?:\w+\W+){0,3}?(?:resolved|removed|cleared)\b|^\W+(?:\w+\W+){0,2}?resolution\b")
_UNKNOWN = re.compile(
    r"\b(?:evaluat\w+|assess\w+|correlate\w*(?: clinically)?|sensitivity) (?:for|of)(?:\W+[\w'-]+){0,3}?\W+$"
)
_NO_CHANGE = re.compile(r"\bno (?:\w+ ){0,2}?(?:change|interval)s?\b")
_GONE_BEFORE = re.compile(r"\b(?:resolution|clearing|removal|resolved)(?: of)?(?:\W+[\w'-]+){0,4}?\W+$")
_PATTERNS = {name: re.compile("|".join(rf"\b(?:{one})\b" for one in every)) for name, every in WORDINGS.items()}


def stated_findings(report: str) -> tuple[str, ...]:
    """Return the findings that a report states, in the order of :data:`FINDINGS`."""
    sentences = [sentence for sentence in _SENTENCE.split(report.lower()) if sentence.strip()]
    return tuple(name for name in FINDINGS if any(_states(sentence, name) for sentence in sentences))


def _states(sentence: str, name: str) -> bool:
    """Return whether a sentence states a finding at least once without denying it."""
    return any(not _denied(sentence, *match.span()) for match in _PATTERNS[name].finditer(sentence))


def _denied(sentence: str, start: int, end: int) -> bool:
    sentence = _NO_CHANGE.sub(lambda match: " " * len(match[0]), sentence)
    if (
        _UNKNOWN.search(sentence[:start])
        or _GONE.search(sentence[end:])
        or _NORMAL.search(sentence[end:])
        or _GONE_BEFORE.search(sentence[:start])
    ):
        return True
    return is_denied(_clause(sentence, start), start, end) or _in_denied_list(sentence[:start], sentence[start:end])


def _clause(sentence: str, start: int) -> str:
    """Blank the parts between commas before the one of a finding, so that they deny nothing by themselves."""
    comma = sentence.rfind(",", 0, start)
    return sentence if comma < 0 else " " * (comma + 1) + sentence[comma + 1 :]


def _in_denied_list(before: str, finding: str) -> bool:
    """Return whether a list that a cue denies goes on up to a finding: each part after the first has no own statement.

    Args:
        before: The sentence up to the finding.
        finding: The words that name the finding; they may hold a verb ("the heart is enlarged").
    """
    denied = False
    *parts, last = before.split(",")
    for part, words in [*((part, part) for part in parts), (last, last + finding)]:
        if denied and (_STATES.search(part) or _VERB.search(words)):
            denied = False
        cues = list(_LIST.finditer(part))
        if cues:
            denied = not _NEW_STATEMENT.search(part[cues[-1].end() :])
    return denied
