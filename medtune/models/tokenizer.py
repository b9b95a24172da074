"""What a chat transform asks of a tokenizer, and the tokenizer that reads Hugging Face's ``tokenizer.json``."""

from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

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
SPECIAL_TOKENS = tuple(_SPECIAL.values())


class ChatTokenizer(Protocol):
    """A tokenizer with Llama-3's special tokens. ``encode`` never yields one of them, whatever the text holds."""

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


class JsonTokenizer:
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

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise ModelError(f"no tokenizer at {file}: give a tokenizer.json or the folder that holds it")
        self._load(file.read_text(encoding="utf-8"), str(file))

    def _load(self, text: str, source: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{source} is not a tokenizer.json: {error}") from error
        # "<|eot_id|>" in a report is text, never the end of a turn
        self._tokenizer.encode_special_tokens = True
        for attribute, token in _SPECIAL.items():
            token_id = self._tokenizer.token_to_id(token)
            if token_id is None:
                raise ModelError(f"{source} has no token {token}; this transform needs Llama-3's special tokens")
            setattr(self, attribute, token_id)

    def __getstate__(self) -> str:
        return self._tokenizer.to_str()

    def __setstate__(self, text: str) -> None:
        self._load(text, "a copied tokenizer")

    @property
    def vocab_size(self) -> int:
        """Rows of the decoder's own embedding table; image tokens lie beyond them."""
        return self.image_id

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written out in it stay text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
