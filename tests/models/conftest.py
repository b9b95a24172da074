"""Two small tokenizers: one of ours, one in the format of Llama-3's ``tokenizer.model``."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.models.mini import train_mini_tokenizer

SENTENCES = [
    "The cell is big and round, with a purple nucleus.",
    "What is the cell size?",
    "What is the nucleus shape? Answer with the letter of the correct choice.",
    "small cell size, unsegmented-round nucleus shape, high nuclear cytoplasmic ratio",
    "The correct answer is A.",
    "Describe this image in detail.",
    "It shows a white blood cell: a neutrophil with pink granules.",
    "user assistant system",
    "yes no, yes, no",
    "eosinophil, basophil, lymphocyte, monocyte",
    "The chromatin is loosely packed and the cytoplasm is light blue.",
    "Is there a vacuole in the cytoplasm? There is none.",
]
VOCAB = 340


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_mini_tokenizer(SENTENCES, VOCAB, folder)
    return folder


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory):
    """Bytes, and the two merges that make the placeholder one token; special tokens have Llama-3's ids."""
    pieces = [bytes([i]) for i in range(256)] + [b"\xe2\x91", b"\xe2\x91\xa0"]
    file = tmp_path_factory.mktemp("llama") / "tokenizer.model"
    file.write_text("".join(f"{base64.b64encode(p).decode()} {rank}\n" for rank, p in enumerate(pieces)))
    return file


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Case of ``folders.FOLDERS`` -> its folder, made once."""
    from tests.models.folders import FOLDERS

    found: dict[str, Path] = {}

    def folder(case: str) -> Path:
        if case not in found:
            found[case] = FOLDERS[case](tmp_path_factory.mktemp("folder"))
        return found[case]

    return folder
