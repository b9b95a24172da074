"""Stop texts: found while an answer is streamed, and never sent."""

from collections.abc import Sequence


class StopTexts:
    """Passes the text of an answer on up to the first stop text.

    A piece is held back while it could be the beginning of a stop text.

    Args:
        stops: The texts; none passes everything on.

    Attributes:
        found: Whether a stop text was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.found, self._held = tuple(stops), False, ""

    def add(self, text: str) -> str:
        """Add a piece of the answer; return what may be sent."""
        if not self.stops or self.found:
            return "" if self.found else text
        held = self._held + text
        places = [place for place in map(held.find, self.stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max(_overlap(held, stop) for stop in self.stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """Return what was held back, when the answer has ended."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that begin a stop text."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
