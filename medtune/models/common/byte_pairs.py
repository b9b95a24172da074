"""Qwen2's tokenizer from its two text files, ``vocab.json`` and ``merges.txt``, for folders without tokenizer.json."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from medtune.errors import ModelError
from medtune.models.common.tokenizer import FastTokenizer
from medtune.models.weight_files import read_json

FILES = ("vocab.json", "merges.txt")
# How Qwen2 and Qwen2.5 part a text into words before byte pairs are merged (Qwen2's tokenizer of transformers).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class BytePairTokenizer(FastTokenizer):
    """Reads ``vocab.json``, ``merges.txt`` and the special tokens of the files next to them.

    Args:
        folder: holds the files; ``added_tokens.json`` and ``tokenizer_config.json`` name the special tokens.

    Raises:
        ModelError: if a file is missing, unreadable or contradicts another.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            pairs = [_pair(line) for line in merges if line.strip() and not line.startswith("#version")]
            model = BPE(read_json(folder / "vocab.json"), pairs)
        except ModelError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"{folder}: vocab.json and merges.txt cannot be read ({error}); download them again"
            ) from error
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = NFC()
        words = Split(Regex(_WORDS), "isolated")
        tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = ByteLevelDecoder()
        ordinary = _ordinary(folder)
        for token, number in sorted(added_tokens(folder).items(), key=lambda entry: entry[1]):
            add = tokenizer.add_tokens if token in ordinary else tokenizer.add_special_tokens
            add([AddedToken(token, normalized=False)])
            if tokenizer.token_to_id(token) != number:
                raise ModelError(
                    f"{folder}: the files give {token} the id {number}, and it comes as {tokenizer.token_to_id(token)} "
                    "after vocab.json; take all tokenizer files of one download"
                )
        self._load(tokenizer.to_str(), str(folder))


def _pair(line: str) -> tuple[str, str]:
    first, _, second = line.partition(" ")
    return first, second


def _ordinary(folder: Path) -> set[str]:
    """Added tokens that texts may hold, such as Qwen2.5's ``<tool_call>``."""
    file = folder / "tokenizer_config.json"
    listed = _read(file).get("added_tokens_decoder") if file.is_file() else None
    entries = listed.values() if isinstance(listed, dict) else ()
    return {str(e.get("content")) for e in entries if isinstance(e, dict) and e.get("special") is False}


def added_tokens(folder: Path) -> dict[str, int]:
    """Special tokens and their ids, as added_tokens.json, tokenizer_config.json or tokenizer.json lists them."""
    found: dict[str, int] = {}
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        file = folder / name
        if not file.is_file():
            continue
        content = _read(file)
        entries: Any = content
        if name == "tokenizer.json":
            listed = content.get("added_tokens")
            entries = {e["content"]: e["id"] for e in listed if isinstance(e, dict)} if isinstance(listed, list) else {}
        elif name == "tokenizer_config.json":
            listed = content.get("added_tokens_decoder")
            entries = {e["content"]: i for i, e in listed.items()} if isinstance(listed, dict) else {}
        try:
            found |= {str(token): int(number) for token, number in entries.items()}
        except (TypeError, ValueError) as error:
            raise ModelError(f"{file} does not list tokens with their ids; download it again") from error
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} does not hold a JSON object; download it again")
    return content
