"""What a downloaded folder tells of texts and images: its tokenizer, chat template and normalisation of pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtune.errors import ModelError
from medtune.models.common.byte_pairs import FILES, BytePairTokenizer, added_tokens
from medtune.models.common.tokenizer import FastTokenizer, SentencePieceTokenizer, TextTokenizer
from medtune.models.weight_files import read_json

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def folder_tokenizer(folder: Path, vocab_size: int) -> TextTokenizer:
    """Read the tokenizer of a folder, in the first format that it has.

    The formats are ``tokenizer.json``, SentencePiece's ``tokenizer.model``, and ``vocab.json`` with ``merges.txt``.

    Args:
        folder: the downloaded folder.
        vocab_size: rows of the model's embedding table.

    Raises:
        ModelError: if there is no tokenizer, a file is damaged, or the vocabulary is larger than the model's.
    """
    tokenizer: TextTokenizer
    if (folder / "tokenizer.json").is_file():
        tokenizer = FastTokenizer(folder)
        size = max(tokenizer.vocabulary().values(), default=-1) + 1
    elif (folder / "tokenizer.model").is_file():
        tokenizer = SentencePieceTokenizer(folder)
        size = len(tokenizer)
    elif all((folder / name).is_file() for name in FILES):
        tokenizer = BytePairTokenizer(folder)
        size = max(tokenizer.vocabulary().values(), default=-1) + 1
    else:
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt); download the "
            "whole folder"
        )
    if size > vocab_size:
        raise ModelError(
            f"the tokenizer of {folder} has {size:,} tokens and the model {vocab_size:,}: it belongs to another "
            "model; take all files from one download"
        )
    return tokenizer


def has_token(folder: Path, token: str) -> int | None:
    """Id of a special token by the files of a folder, or None if they do not list it; no tokenizer is built."""
    return added_tokens(folder).get(token)


def image_normalisation(
    folder: Path, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel by the processor's file, or the given ones without such a file."""
    content = processor_config(folder)
    found = [content.get(key, otherwise) for key, otherwise in (("image_mean", mean), ("image_std", std))]
    for key, values in zip(("image_mean", "image_std"), found, strict=True):
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3:
            raise ModelError(f"{folder}: {key} of the processor's file is not three numbers; download it again")
    return tuple(map(float, found[0])), tuple(map(float, found[1]))


def processor_config(folder: Path) -> dict[str, Any]:
    """Settings of the image processor; transformers 5 writes them into ``processor_config.json``."""
    found: dict[str, Any] = {}
    for name in _PROCESSOR_FILES:
        file = folder / name
        if file.is_file():
            content = read_json(file)
            inner = content.get("image_processor")
            found |= inner if isinstance(inner, dict) else content
    return found


def chat_template_of(folder: Path) -> str | None:
    """The chat template of a folder, from any of the files that may hold it; the one named ``default`` of several."""
    for name in ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        if name.endswith(".jinja"):
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ModelError(f"{file} cannot be read ({error}); download it again") from error
        found = read_json(file).get("chat_template")
        if isinstance(found, list):  # several, by their names
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str) and found.strip():
            return found
    return None


def eos_token_of(folder: Path, otherwise: str) -> str:
    """The token that ends an answer, ``eos_token`` of the tokenizer's files.

    Args:
        folder: the downloaded folder.
        otherwise: the token if no file names one.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        found = read_json(file).get("eos_token") if file.is_file() else None
        found = found.get("content") if isinstance(found, dict) else found
        if isinstance(found, str) and found:
            return found
    return otherwise


def knows(tokenizer: TextTokenizer, token: str) -> bool:
    """Whether a tokenizer has a special token."""
    try:
        tokenizer.special_id(token)
    except ModelError:
        return False
    return True
