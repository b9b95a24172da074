"""What was read from an answer to a FLARE question: a value, or the reason why there is none."""

import re
from dataclasses import dataclass
from typing import Any

EMPTY = "empty"
NO_OPTION = "names no option"
SEVERAL_OPTIONS = "names several options"
UNKNOWN_OPTION = "names an option that the question lacks"
OTHER_TEXT = "letter and text name different options"
NO_LABEL = "prose without a list of labels"
NO_NUMBER = "holds no number"
SEVERAL_NUMBERS = "holds several numbers"
RANGE = "a range of numbers"
TOO_LARGE = "a number beyond 1,000,000"
NEGATIVE = "a negative count"
NO_BOXES = "holds no boxes"
NO_CLASSES = "boxes without classes"
REASONS = (
    EMPTY,
    NO_OPTION,
    SEVERAL_OPTIONS,
    UNKNOWN_OPTION,
    OTHER_TEXT,
    NO_LABEL,
    NO_NUMBER,
    SEVERAL_NUMBERS,
    RANGE,
    TOO_LARGE,
    NEGATIVE,
    NO_BOXES,
    NO_CLASSES,
)
"""Every reason why an answer has no value."""
LONGEST = 20_000
"""Characters of an answer that are read; what follows is a run-on."""
_SPECIAL = re.compile(r"<\|[A-Za-z_]{1,20}\|>|</?s>|<(?:end_of_turn|eos|unused\d+)>")
_FENCE = re.compile(r"```[A-Za-z0-9_]*")


@dataclass(frozen=True)
class Reading:
    """An answer as it was read.

    Attributes:
        value: what it says: a letter or text (classification), a tuple of labels, a float, boxes, or ``{class:
            boxes}``; None if it could not be read.
        reason: why it could not be read, one of :data:`REASONS`; empty if it could.
    """

    value: Any = None
    reason: str = ""

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.reason in REASONS), "a value or a named reason"


def cleaned(answer: str) -> str:
    """Return an answer without a model's special tokens, the marks of code blocks and spaces around it."""
    return _FENCE.sub("", _SPECIAL.sub("", answer[:LONGEST])).strip()
