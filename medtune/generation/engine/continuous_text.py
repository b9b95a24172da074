"""Streaming of an answer's text while its tokens are generated."""

from collections.abc import Callable

_INCOMPLETE = "\ufffd"


class TextStream:
    """Turns tokens into pieces of text; all pieces together are the text of all tokens.

    A character may be spread over several tokens, and a token's text may depend on the token before it. So a piece is
    the difference between two decodings, and it is held back while its last character is incomplete.

    Args:
        decode: Returns the text of tokens.

    Attributes:
        tokens: All tokens so far.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.tokens: list[int] = []
        self._decode = decode
        self._context = self._written = 0  # start and end of the tokens whose text was returned last
        self._pieces: list[str] = []

    def add(self, token: int) -> str:
        """Add a token; return the text that has become complete."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._context : self._written])
        after = self._decode(self.tokens[self._context :])
        if len(after) <= len(before) or after.endswith(_INCOMPLETE):
            return ""
        self._context, self._written = self._written, len(self.tokens)
        self._pieces.append(after[len(before) :])
        return self._pieces[-1]

    def end(self) -> str:
        """Return the text that was held back."""
        return self._decode(self.tokens)[sum(map(len, self._pieces)) :]
