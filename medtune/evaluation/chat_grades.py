"""What a judge said of one answer beside its reference answer, as it stands in a prediction's ``meta["chat"]``."""

import math
from dataclasses import dataclass
from typing import Any

from medtune.errors import DataError

Pair = tuple[float, float]


@dataclass(frozen=True)
class ChatGrade:
    """A judge's scores of a reference answer and of a model's answer.

    Attributes:
        shown: For each reply, the scores of reference and answer; None for a reply that could not be read. With two
            replies, the reference was shown first in the first one and second in the second one.
        reason: Why there is no score; empty if there is one.
        words: What the judge wrote, a text for each reply.
        reference: The reference answer that was shown.
        made: Whether the judge wrote the reference answer itself.
        judge: Who judged and how: model, prompts, orders.
    """

    shown: tuple[Pair | None, ...]
    reason: str
    words: tuple[str, ...]
    reference: str
    made: bool
    judge: str

    @property
    def scores(self) -> Pair | None:
        """Scores of reference and answer, each the mean over the replies; None if a reply could not be read."""
        known = [pair for pair in self.shown if pair is not None]
        if self.reason or not known or len(known) < len(self.shown):
            return None
        reference, answer = (sum(pair[side] for pair in known) / len(known) for side in (0, 1))
        return reference, answer

    @property
    def place_effect(self) -> float | None:
        """How many points more the answer gets when it is shown first than when it is shown second; None if unknown."""
        if len(self.shown) != 2 or self.scores is None:
            return None
        second, first = (pair[1] for pair in self.shown if pair is not None)
        return first - second

    @property
    def follows_place(self) -> bool | None:
        """Whether both replies prefer the answer at the same place; None for a tie, or if one order was asked."""
        if self.place_effect is None:
            return None
        before, after = (pair[1] - pair[0] for pair in self.shown if pair is not None)
        return None if before == 0 or after == 0 else (before > 0) != (after > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the grade as plain JSON values."""
        return {
            "shown": [pair and list(pair) for pair in self.shown],
            "reason": self.reason,
            "words": list(self.words),
            "reference": self.reference,
            "made": self.made,
            "judge": self.judge,
        }

    @classmethod
    def from_dict(cls, node: Any, where: str) -> "ChatGrade":
        """Read a grade from plain values.

        Raises:
            DataError: The values are no grade; ``where`` names the prediction.
        """
        try:
            shown = tuple(None if pair is None else _pair(pair) for pair in node["shown"])
            words, made = tuple(map(_text, node["words"])), node["made"]
            reason, reference, judge = (_text(node[key]) for key in ("reason", "reference", "judge"))
            if not isinstance(made, bool):
                raise TypeError("made")
            return cls(shown, reason, words, reference, made, judge)
        except (TypeError, KeyError, ValueError):
            raise DataError(
                f"{where}: meta.chat holds no scores of a judge; run the judge recipe on the predictions again."
            ) from None


def _pair(values: Any) -> Pair:
    reference, answer = values
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (reference, answer)):
        raise ValueError("no numbers")
    if not (math.isfinite(reference) and math.isfinite(answer) and reference > 0 and answer >= 0):
        raise ValueError("no scores")
    return float(reference), float(answer)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
