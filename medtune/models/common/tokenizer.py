"""The interface of a tokenizer that transforms need, and readers of the two published file formats."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer

from medtune.errors import ModelError

_SPECIAL = {
    "bos_id": "<|begin_of_text|>",
    "eos_id": "<|end_of_text|>",
    "pad_id": "<|finetune_right_pad_id|>",
    "start_header_id": "<|start_header_id|>",
    "end_header_id": "<|end_header_id|>",
    "eot_id": "<|eot_id|>",
    "eom_id": "<|eom_id|>",
    "image_id": "<|image|>",
}
_PLACEHOLDERS = "\u2460\u2461\u203b\u2605\u25c6"  # single tokens in the vocabularies of Qwen2.5 and Gemma 3
SPECIAL_TOKENS = tuple(_SPECIAL.values())
# Unicode reserves this code point and no text contains it, so it can mark a position inside a string.
_CUT = "\ufdd0"


class TextTokenizer(Protocol):
    """A tokenizer whose special tokens have ids, and whose ``encode`` never yields such an id, whatever the text."""

    def special_id(self, token: str) -> int:
        """Id of a special token."""

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of plain text at the start of a string, or (``first=False``) after a special token."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""


class ChatTokenizer(Protocol):
    """A tokenizer with Llama-3's special tokens. ``encode`` never yields one of them, whatever the text.

    Llama-3 encodes text in the same way at every position, so there is no argument ``first``.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    start_header_id: int
    end_header_id: int
    eot_id: int
    eom_id: int
    image_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""


class FastTokenizer:
    """Reads any ``tokenizer.json`` and gives the same ids as transformers' fast tokenizers.

    Args:
        path: the file, or a folder that holds it.

    Raises:
        ModelError: if the file is missing or unreadable.
    """

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise ModelError(f"no tokenizer at {file}: give a tokenizer.json or the folder that holds it")
        self._load(_read_text(file), str(file))

    def _load(self, text: str, source: str) -> None:
        self._source = source
        self._tokenizer = self._cutting = _from_json(text, source)
        if _marks_the_start(self._tokenizer):
            # Such a tokenizer encodes the first text of a string differently from text after a special token.
            self._cutting = _from_json(text, source)
            self._cutting.add_tokens([AddedToken(_CUT, normalized=False)])

    def __getstate__(self) -> str:
        return self._tokenizer.to_str()

    def __setstate__(self, text: str) -> None:
        self._load(text, "a copied tokenizer")

    def special_id(self, token: str) -> int:
        """Id of a special token.

        Raises:
            ModelError: if there is no such token, or the tokenizer strips spaces next to it, which is not supported.
        """
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ModelError(f"{self._source} has no token {token}; the tokenizer is not the one this model needs")
        added = self._tokenizer.get_added_tokens_decoder().get(token_id)
        if added is not None and (added.lstrip or added.rstrip):
            raise ModelError(f"{self._source}: the token {token} strips spaces beside it, which is not supported")
        return token_id

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of plain text; special tokens written out in it stay text.

        Args:
            text: what to encode.
            first: whether the text begins a string; otherwise it follows a special token.
        """
        if first or self._cutting is self._tokenizer:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._cutting.encode(_CUT + text.replace(_CUT, "\ufffd"), add_special_tokens=False).ids[1:]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, special ones included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def with_special_tokens(self, tokens: Sequence[str]) -> str:
        """The contents of a ``tokenizer.json`` in which these tokens are special; new ones get the next ids."""
        copied = Tokenizer.from_str(self._tokenizer.to_str())
        copied.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
        return copied.to_str(pretty=True)


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error})") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as UTF-8 ({error}); download it again") from error


def _from_json(text: str, source: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{source} is not a tokenizer.json: {error}") from error
    # "<|eot_id|>" in a report is text, never the end of a turn
    tokenizer.encode_special_tokens = True
    # a file may ask for a fixed length, which would cut texts without a word and fill others
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _marks_the_start(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer may treat the start of a string differently, as those made from SentencePiece do."""
    steps = [step.__getstate__() for step in (tokenizer.normalizer, tokenizer.pre_tokenizer) if step is not None]
    return any(b'"Metaspace"' in step or b'"Prepend"' in step for step in steps)


class JsonTokenizer(FastTokenizer):
    """A ``tokenizer.json`` with Llama-3's special tokens.

    Args:
        path: the file, or a folder that holds it.

    Raises:
        ModelError: if the file is missing or unreadable, or lacks a special token.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    start_header_id: int
    end_header_id: int
    eot_id: int
    eom_id: int
    image_id: int

    def _load(self, text: str, source: str) -> None:
        super()._load(text, source)
        for attribute, token in _SPECIAL.items():
            token_id = self._tokenizer.token_to_id(token)
            if token_id is None:
                raise ModelError(f"{source} has no token {token}; this transform needs Llama-3's special tokens")
            setattr(self, attribute, token_id)

    @property
    def vocab_size(self) -> int:
        """Rows of the decoder's text embedding table; image tokens have ids beyond them."""
        return self.image_id


class SentencePieceTokenizer:
    """A SentencePiece ``tokenizer.model`` and the special tokens of the files next to it.

    Args:
        path: the file, or a folder that holds it. ``added_tokens.json`` and ``tokenizer_config.json`` are read from
            the same folder.
        legacy: whether a space is added before text that follows a special token, as in transformers' slow tokenizers;
            None takes ``legacy`` of ``tokenizer_config.json``, and True if it is not there.

    Raises:
        ModelError: if a file is missing or unreadable.
    """

    def __init__(self, path: str | Path, legacy: bool | None = None) -> None:
        file = Path(path)
        file = file / "tokenizer.model" if file.is_dir() else file
        if not file.is_file():
            raise ModelError(
                f"no tokenizer at {file}: give a SentencePiece tokenizer.model or the folder that holds it"
            )
        config = _read_json(file.with_name("tokenizer_config.json"))
        try:
            added = {token: int(i) for token, i in _read_json(file.with_name("added_tokens.json")).items()}
            added |= {entry["content"]: int(i) for i, entry in config.get("added_tokens_decoder", {}).items()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{file.parent}: added_tokens.json or tokenizer_config.json does not list tokens with their ids "
                f"({type(error).__name__}); download it again"
            ) from error
        configured = config.get("legacy")
        if legacy is None:
            legacy = True if configured is None else bool(configured)
        self._load(_read_bytes(file), added, legacy, str(file))

    def _load(self, model: bytes, added: dict[str, int], legacy: bool, source: str) -> None:
        self._model, self._added, self._legacy, self._source = model, added, legacy, source
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ModelError(f"{source} is not a SentencePiece model: {error}") from error
        self._cut = self._pieces.encode(_CUT)
        built_in = (i for i in range(len(self._pieces)) if self._pieces.is_control(i) or self._pieces.is_unknown(i))
        self._special = set(added.values()) | set(built_in)

    def __getstate__(self) -> tuple[bytes, dict[str, int], bool, str]:
        return self._model, self._added, self._legacy, self._source

    def __setstate__(self, state: tuple[bytes, dict[str, int], bool, str]) -> None:
        self._load(*state)

    def __len__(self) -> int:
        """One more than the largest id."""
        return max([len(self._pieces) - 1, *self._added.values()]) + 1

    def special_id(self, token: str) -> int:
        """Id of a special token.

        Raises:
            ModelError: if there is no such token.
        """
        if token in self._added:
            return self._added[token]
        token_id = self._pieces.piece_to_id(token)
        if self._pieces.id_to_piece(token_id) != token:
            raise ModelError(
                f"{self._source} and the files beside it have no token {token}; is added_tokens.json or "
                "tokenizer_config.json missing?"
            )
        return token_id

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of plain text; special tokens written out in it stay text.

        Args:
            text: what to encode.
            first: whether the text begins a string; otherwise it follows a special token.
        """
        ids = self._encode(text, first or self._legacy)
        unknown = self._pieces.unk_id()
        if all(i not in self._special or i == unknown for i in ids):
            return ids
        # SentencePiece found special tokens in this text, so each of them is cut in two.
        text = text.replace(_CUT, "\ufffd")
        for i in self._special:
            piece = self._pieces.id_to_piece(i) if i < len(self._pieces) else ""
            if len(piece) > 1:
                text = text.replace(piece, piece[0] + _CUT + piece[1:])
        head, *rest = text.split(_CUT)
        return [*self._encode(head, first or self._legacy), *(i for part in rest for i in self._encode(part, False))]

    def _encode(self, text: str, prefix: bool) -> list[int]:
        """Ids of text, with or without the space that SentencePiece puts before it."""
        if prefix or not text:
            return self._pieces.encode(text)
        return self._pieces.encode(_CUT + text.replace(_CUT, "\ufffd"))[len(self._cut) :]

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens and ids beyond the vocabulary are left out."""
        return self._pieces.decode([i for i in ids if i < len(self._pieces) and i not in self._special])


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} does not hold a JSON object; download it again")
    return content


def single_token(
    tokenizer: TextTokenizer | ChatTokenizer, text: str, copies: int = 8, *, after_space: bool = True
) -> int:
    """The id of a character that stays one token however often it is repeated.

    Args:
        tokenizer: gives ids.
        text: the character.
        copies: number of copies that are tried in a row.
        after_space: whether it may stand after a space. Qwen2.5 and Gemma 3 have tokens for a space with such a
            character, so that the first copy would be another token there.

    Raises:
        ModelError: if the tokenizer splits it or merges it with its neighbours.
    """
    token_id = tokenizer.encode(text)[-1]
    for before in ("", "\n", "a: ") if after_space else ("", "\n"):
        ids = tokenizer.encode(before + text * copies + " b")
        if ids.count(token_id) != copies or ids[ids.index(token_id) :][:copies] != [token_id] * copies:
            raise ModelError(f"the tokenizer splits or merges the placeholder {text!r}; one token each is needed")
    return token_id


def special_ids(tokenizer: TextTokenizer, tokens: Iterable[str]) -> list[int]:
    """Ids of several special tokens."""
    return [tokenizer.special_id(token) for token in tokens]


def placeholder(
    tokenizer: TextTokenizer | ChatTokenizer, *, after_space: bool, candidates: Sequence[str] = _PLACEHOLDERS
) -> str:
    """Return a rare character that is always one token, whose embedding learned vectors replace.

    Args:
        tokenizer: gives ids.
        after_space: whether a user's message stands after a space in the chat format.
        candidates: characters that are tried in this order.

    Raises:
        ModelError: if the tokenizer has none of them as one token.
    """
    for character in candidates:
        try:
            single_token(tokenizer, character, after_space=after_space)
        except ModelError:
            continue
        return character
    raise ModelError(f"the tokenizer has none of {' '.join(candidates)} as one token; is it that of the checkpoint?")
