"""The text of an answer while it is being written."""

from collections.abc import Callable

_INCOMPLETE = "\ufffd"


class TextStream:
    """Turns tokens into pieces of text whose sum is the text of all tokens.

    A character may be spread over several tokens, and a token's text may depend on the one before it. A piece is
    therefore what two decodings differ by, and is held back while its last character is incomplete.

    Args:
        decode: Text of tokens.

    Attributes:
        tokens: Those so far.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.tokens: list[int] = []
        self._decode = decode
        self._context = self._written = 0  # tokens from which, and up to which, text was given out last
        self._pieces: list[str] = []

    def add(self, token: int) -> str:
        """Take a token; returns the text that is complete now."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._context : self._written])
        after = self._decode(self.tokens[self._context :])
        if len(after) <= len(before) or after.endswith(_INCOMPLETE):
            return ""
        self._context, self._written = self._written, len(self.tokens)
        self._pieces.append(after[len(before) :])
        return self._pieces[-1]

    def end(self) -> str:
        """What was held back."""
        return self._decode(self.tokens)[sum(map(len, self._pieces)) :]
