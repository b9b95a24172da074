"""Llama-3's tokenizer, from either of its two published files."""

from pathlib import Path

from torchtune.models.llama3 import Llama3Tokenizer

from medtune.errors import ModelError
from medtune.models.common.tokenizer import ChatTokenizer, JsonTokenizer

_CANDIDATES = ("original/tokenizer.model", "tokenizer.model", "tokenizer.json")


class TiktokenTokenizer:
    """torchtune's Llama-3 tokenizer (``tokenizer.model``) with medtune's interface.

    Args:
        path: the ``tokenizer.model`` file.
    """

    def __init__(self, path: str | Path) -> None:
        stock = Llama3Tokenizer(str(path))
        self._stock = stock
        self._special = frozenset(stock.special_tokens.values())
        self.bos_id, self.eos_id, self.pad_id = stock.bos_id, stock.eos_id, stock.pad_id
        self.start_header_id, self.end_header_id = stock.start_header_id, stock.end_header_id
        self.eot_id, self.eom_id, self.image_id = stock.eot_id, stock.eom_id, stock.image_id

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written out in it stay text."""
        return self._stock.encode(text, add_bos=False, add_eos=False)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        plain = [token for token in ids if token not in self._special]
        return self._stock.decode(plain, truncate_at_eos=False, skip_special_tokens=False)


def llama3_chat_tokenizer(path: str | Path) -> ChatTokenizer:
    """Read Llama-3's tokenizer.

    Args:
        path: ``tokenizer.model``, ``tokenizer.json``, or the folder of a published checkpoint.

    Raises:
        ModelError: if neither file is there.
    """
    file = Path(path)
    if file.is_dir():
        present = [file / name for name in _CANDIDATES if (file / name).is_file()]
        if not present:
            raise ModelError(f"{file} holds none of {', '.join(_CANDIDATES)}; download the tokenizer with the weights")
        file = present[0]
    if not file.is_file():
        raise ModelError(f"no tokenizer at {file}")
    return JsonTokenizer(file) if file.suffix == ".json" else TiktokenTokenizer(file)
