"""What a judge is: it gives two answers a score each, or says why it cannot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient
from medtune.judges.candidates import Candidate

OpenImages = Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class Judgement:
    """What a judge says on one candidate.

    Attributes:
        id: Id of the candidate.
        scores: Scores of the two answers in the candidate's order; None if there are none.
        reason: Why there are none; empty if there are. ``dropped`` reasons come from the candidate, others from the
            judge's replies.
        shown: For each reply, the scores of the answer that was shown first and of the one shown second; None for a
            reply that could not be read. Empty for a judge to whom nothing is shown in an order.
        asked: Replies that this run has asked a server for.
        cached: Replies that were in the cache.
        votes: A human judge's votes: for the first answer, for the second, for both or neither.
        words: What the judge wrote, a text for each reply; empty if it is not kept.
        reference: The reference answer that the judge made itself; empty if it made none.
    """

    id: str
    scores: tuple[float, float] | None
    reason: str = ""
    shown: tuple[tuple[float, float] | None, ...] = ()
    asked: int = 0
    cached: int = 0
    votes: tuple[int, int, int] | None = None
    words: tuple[str, ...] = ()
    reference: str = ""

    @property
    def preferred(self) -> int | None:
        """Which answer has the higher score, 0 or 1; None for a tie or without scores."""
        if self.scores is None or self.scores[0] == self.scores[1]:
            return None
        return int(self.scores[1] > self.scores[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the judgement as plain JSON values."""
        row: dict[str, Any] = {"id": self.id, "scores": self.scores and list(self.scores), "reason": self.reason}
        row["shown"] = [scores and list(scores) for scores in self.shown]
        row |= {"asked": self.asked, "cached": self.cached}
        row |= {"votes": list(self.votes)} if self.votes else {}
        row |= {"words": list(self.words)} if self.words else {}
        return {**row, "reference": self.reference} if self.reference else row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Judgement":
        """Return a judgement from the values of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: The values are no judgement.
        """
        shown = tuple(None if scores is None else _pair(scores) for scores in row["shown"])
        votes = row.get("votes")
        return cls(
            str(row["id"]),
            None if row["scores"] is None else _pair(row["scores"]),
            str(row["reason"]),
            shown,
            int(row["asked"]),
            int(row["cached"]),
            None if votes is None else (int(votes[0]), int(votes[1]), int(votes[2])),
            tuple(map(str, row.get("words", ()))),
            str(row.get("reference", "")),
        )


class Judge(Protocol):
    """Chooses between answers. A judge is a value from a config; it keeps no state between candidates.

    Attributes:
        remote: Whether it asks a served model, and so needs ``server`` in the config.
        looks: Whether it opens the images of a candidate.
    """

    @property
    def remote(self) -> bool:
        """Whether it asks a served model."""
        ...

    @property
    def looks(self) -> bool:
        """Whether it needs the images."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return everything on which its judgements depend, as plain values, among them its ``name``."""
        ...

    def versions(self) -> Sequence[str]:
        """Return names and versions of its prompts; none for a judge without prompts."""
        ...

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return the requests that a candidate needs; none for a judge that asks no server."""
        ...

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Judge one candidate; may be called from several threads.

        Args:
            candidate: The question with its answers.
            open_images: Opens its images.
            client: Client of the served model, for a judge that needs one.

        Raises:
            DataError: An image cannot be opened, or the candidate lacks what the judge needs.
            ConfigError, ModelError: The server cannot be asked.
            BudgetSpentError: A request does not fit into the budget.
        """
        ...


def _pair(scores: Sequence[Any]) -> tuple[float, float]:
    first, second = scores
    return float(first), float(second)
