"""Who annotates what, in which order, and which answer stands on the left: all drawn from one seed."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medtune.errors import ConfigError


@dataclass(frozen=True)
class Shares:
    """How questions are divided.

    Attributes:
        seed: Of every draw.
        overlap: Share of the questions that several annotators get, for their agreement.
        raters: How many annotators such a question gets; 0 is all of them.
    """

    seed: int = 0
    overlap: float = 0.2
    raters: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"--overlap {self.overlap:g}: give a share from 0 to 1")
        if self.raters < 0 or self.raters == 1:
            raise ConfigError(
                f"--raters {self.raters}: agreement needs at least 2 annotators for a question, or 0 for all"
            )

    def swapped(self, annotator: str, item: str) -> bool:
        """Return whether this annotator sees the second answer on the left."""
        return bool(self._draw("side", annotator, item) & 1)

    def place(self, annotator: str, item: str) -> int:
        """Return a number by which the questions of an annotator are ordered."""
        return self._draw("order", annotator, item) >> 2  # 62 bits: an INTEGER of SQLite

    def shared(self, items: Iterable[str]) -> set[str]:
        """Return the questions that several annotators get: exactly the share, whatever the order of the file."""
        drawn = sorted(items, key=lambda item: (self._draw("overlap", item), item))
        return set(drawn[: round(self.overlap * len(drawn))])

    def divide(
        self, items: Sequence[str], annotators: Sequence[str], kept: Mapping[str, Sequence[str]]
    ) -> dict[str, list[str]]:
        """Give each question to annotators, so that each has about as many open ones.

        Args:
            items: Ids of the questions.
            annotators: Their names.
            kept: Annotators of a question who have chosen already; they stay, and are not counted as busy.

        Returns:
            The annotators of each question, the kept ones first.
        """
        shared, open_ones = self.shared(items), dict.fromkeys(annotators, 0)
        wanted = min(self.raters or len(annotators), len(annotators))
        divided: dict[str, list[str]] = {}
        # Questions of several annotators first: what is left evens out their loads.
        for item in sorted(items, key=lambda one: (one not in shared, self._draw("turn", one), one)):
            given = list(kept.get(item, ()))
            free = sorted(
                (name for name in annotators if name not in given),
                key=lambda name: (open_ones[name], self._draw("tie", name, item)),
            )
            more = free[: max(0, (wanted if item in shared else 1) - len(given))]
            for name in more:
                open_ones[name] += 1
            divided[item] = given + more
        return divided

    def _draw(self, *parts: str) -> int:
        text = "\0".join((str(self.seed), *parts))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
