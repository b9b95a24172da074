"""GREEN: a language model lists the errors of a generated report, and the counts give a score (Ostmeier et al. 2024).

``GREEN = matched / (matched + sum of the clinically significant errors a to f)``, 0 if no finding is matched (Sec. 3.2
of "GREEN: Generative Radiology Report Evaluation and Error Notation", Findings of EMNLP 2024).

A reply is read in two ways. The strict reading gives no score if a section or a count is missing or ambiguous, and
says why. The official one is that of the package ``green_score``: what it does not find counts as 0.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.data.writing import sha256
from medtune.errors import ConfigError, DataError

LETTERS = "abcdef"
SIGNIFICANT, MATCHED = "Clinically Significant Errors", "Matched Findings"
MOST = 200
"""A larger count is not one of findings in a report."""
PACKAGED = "green-v1"
_HOLES = ("{reference}", "{candidate}")
_HEADING = re.compile(r"^[ \t*#]*\[([^\]\n]+)\]\s*:?[ \t*]*", re.MULTILINE)
_LINE = re.compile(r"^[ \t*-]*\(([a-f1-6])\)(.*)$", re.MULTILINE)
_COUNT = re.compile(r":\s*(\d+)(?![\d,]|\.\d)")
_FIRST = re.compile(r"(\d+)(?![\d,]|\.\d)(?:[.:;)\s]|$)")
_NONE = re.compile(r"(?:no|none)\b|n/a\b", re.IGNORECASE)


@dataclass(frozen=True)
class GreenCounts:
    """What was read from one reply.

    Attributes:
        significant: Clinically significant errors of the categories a to f; None if they could not be read.
        matched: Matched findings; None if they could not be read.
        reason: Why there is no score: ``section_missing``, ``section_twice``, ``no_count``, ``category_twice``,
            ``count_too_large``, ``no_reply``; empty if there is one.
        official: The score by the official reading.
    """

    significant: tuple[int, ...] | None
    matched: int | None
    reason: str
    official: float

    @property
    def score(self) -> float | None:
        """The score of the strict reading; None if the reply could not be read."""
        if self.reason or self.significant is None or self.matched is None:
            return None
        return green_score(self.significant, self.matched)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain JSON values, as they stand in a prediction's ``meta["green"]``."""
        significant = None if self.significant is None else list(self.significant)
        return {
            "significant": significant, "matched": self.matched, "reason": self.reason, "official": self.official
        }  # fmt: skip

    @classmethod
    def from_dict(cls, node: Any, where: str) -> "GreenCounts":
        """Read counts from plain values.

        Raises:
            DataError: The values are no counts; ``where`` names the prediction.
        """
        try:
            significant, matched = node["significant"], node["matched"]
            counts = None if significant is None else tuple(map(_whole, significant))
            if counts is not None and len(counts) != len(LETTERS):
                raise ValueError("six categories")
            official = float(node["official"])
            if not 0.0 <= official <= 1.0:
                raise ValueError("official")
            return cls(counts, None if matched is None else _whole(matched), str(node["reason"]), official)
        except (TypeError, KeyError, ValueError):
            raise DataError(f"{where}: meta.green holds no counts of GREEN; run the green recipe again.") from None


EMPTY = GreenCounts((0,) * len(LETTERS), 0, "", 0.0)
"""The counts of an empty report: it matches nothing, and no model is asked."""


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("no count")
    return value


def green_score(significant: tuple[int, ...], matched: int) -> float:
    """Return ``matched / (matched + sum(significant))``, 0 if nothing is matched."""
    return matched / (matched + sum(significant)) if matched else 0.0


def read_green(reply: str | None) -> GreenCounts:
    """Read a reply strictly, and as the official package does.

    Args:
        reply: What the model wrote; None if it declined.
    """
    if reply is None or not reply.strip():
        return GreenCounts(None, None, "no_reply", 0.0)
    official = official_score(reply)
    sections, twice = _sections(reply)
    if twice & {SIGNIFICANT, MATCHED}:
        return GreenCounts(None, None, "section_twice", official)
    if SIGNIFICANT not in sections or MATCHED not in sections:
        return GreenCounts(None, None, "section_missing", official)
    significant, why = _errors(sections[SIGNIFICANT])
    matched, reason = _matched(sections[MATCHED])
    return GreenCounts(significant, matched, why or reason, official)


def _sections(reply: str) -> tuple[dict[str, str], set[str]]:
    """Return the text below each heading, and the headings that occur more than once."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    headings = list(_HEADING.finditer(reply))
    ends = [*(heading.start() for heading in headings[1:]), len(reply)]
    for heading, end in zip(headings, ends, strict=False):
        name = heading[1].strip()
        if name in found:
            twice.add(name)
        found[name] = reply[heading.end() : end].strip(" \t\n`")
    return found, twice


def _errors(body: str) -> tuple[tuple[int, ...] | None, str]:
    """Read the six categories; a category that is not listed has no errors, if at least one is."""
    lines = _LINE.findall(body)
    if not lines:
        return ((0,) * len(LETTERS), "") if _NONE.match(body) else (None, "no_count")
    numbered = lines[0][0].isdigit()
    counts: dict[str, int] = {}
    for mark, text in lines:
        letter = LETTERS[int(mark) - 1] if mark.isdigit() else mark
        count = _COUNT.search(text)
        if letter in counts or mark.isdigit() != numbered:
            return None, "category_twice"
        if count is None:
            return None, "no_count"
        if len(count[1]) > len(str(MOST)) or int(count[1]) > MOST:
            return None, "count_too_large"
        counts[letter] = int(count[1])
    return tuple(counts.get(letter, 0) for letter in LETTERS), ""


def _matched(body: str) -> tuple[int | None, str]:
    count = _FIRST.match(body)
    if count is None:
        return (0, "") if _NONE.match(body) else (None, "no_count")
    if len(count[1]) > len(str(MOST)) or int(count[1]) > MOST:
        return None, "count_too_large"
    return int(count[1]), ""


def official_score(reply: str) -> float:
    """Return the score as the package ``green_score`` computes it from a reply: a missing section or count is 0.

    Facts of its reading: a section ends at an empty line; one that begins with "No" is 0; a count stands between
    ``": "`` and ``"."``; of a repeated category the last in alphabetical order counts; categories may have digits; the
    count of matched findings must come first and end in ``"."``; without a matched finding the score is 0.
    """
    reply = reply.split("[Explanation]:")[1] if "[Explanation]:" in reply else reply
    matched_text, error_text = _official_section(reply, MATCHED), _official_section(reply, SIGNIFICANT)
    first = re.match(r"\d+\b(?=\.)", matched_text)
    matched = int(first[0]) if first and not matched_text.startswith("No") else 0
    if not matched:
        return 0.0
    errors = dict.fromkeys(LETTERS, 0)
    if not error_text.startswith("No"):
        lines = sorted(re.findall(r"\([a-f]\) .*", error_text)) or sorted(re.findall(r"\([1-6]\) .*", error_text))
        for line in lines:
            count = re.search(r"(?<=: )\b\d+\b(?=\.)", line)
            if count is not None:
                errors[LETTERS[int(line[1]) - 1] if line[1].isdigit() else line[1]] = int(count[0])
    return matched / (matched + sum(errors.values()))


def _official_section(reply: str, name: str) -> str:
    found = re.search(rf"\[{name}\]:\s*(.*?)(?:\n\s*\n|\Z)", reply, re.DOTALL)
    return found[1] if found else ""


@dataclass(frozen=True)
class GreenPrompt:
    """The text that asks for the counts.

    Attributes:
        text: The text with ``{reference}`` and ``{candidate}``.
        version: Name and the start of the text's SHA-256, which caches and results keep.
        words: Words of each report that are shown, as the package does; the rest is cut off.
    """

    text: str
    version: str
    words: int

    def filled(self, candidate: str, reference: str) -> str:
        """Return the request for one pair of reports, white space as single spaces."""
        shown = {"{candidate}": candidate, "{reference}": reference}
        pattern = re.compile("|".join(map(re.escape, shown)))
        return pattern.sub(lambda hole: " ".join(shown[hole[0]].split()[: self.words]), self.text)


def read_prompt(name: str = PACKAGED, words: int = 300) -> GreenPrompt:
    """Read a prompt.

    Args:
        name: ``green-v1``, or path of a text file that ends in ``.txt`` with ``{reference}`` and ``{candidate}``.
        words: Words of each report that are shown.

    Raises:
        ConfigError: There is no such prompt, or a place for a report is missing.
    """
    path = Path(name).expanduser() if name.endswith(".txt") else Path(__file__).with_name(f"{name}.txt")
    if not path.is_file():
        raise ConfigError(f"there is no prompt {name!r} of GREEN; take {PACKAGED}, or give the path of a .txt file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the prompt {path} cannot be read as UTF-8 text; save it as such") from None
    missing = [hole for hole in _HOLES if text.count(hole) != 1]
    if missing:
        raise ConfigError(f"the prompt {path} must contain {missing[0]} once, where that report belongs")
    return GreenPrompt(text, f"{path.stem}@{sha256(text.encode())[:12]}", words)
