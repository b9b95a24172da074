"""What a model family tells of its downloaded folders, so that a model can be built from a folder alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.weight_files import weight_files

LoraArguments = Mapping[str, Any]
_HEADS = ("lm_head.weight", "language_model.output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight")
_SAMPLE = 16  # rows


@dataclass(frozen=True)
class FolderFamily:
    """One family, as :mod:`medtune.models.from_checkpoint` needs it.

    Attributes:
        title: the family's name in sentences: ``InternVL``.
        shape: (contents of config.json, folder) -> the family's shape. It raises a ModelError that names the key if the
            family does not cover the model.
        build: (name, shape, config, lora, **options) -> the model. ``name`` is for messages, ``config`` the contents of
            config.json (it tells the layout), ``lora`` the arguments of a ``lora_`` builder by their names, or None;
            ``options`` are the family's own arguments, and its signature decides which there are.
        transform: (folder, shape, config, **options) -> the family's transform; its signature decides which options
            there are, for example ``max_num_tiles``; ``supervise_header`` and ``max_seq_len`` always are.
        describe: shape -> half a line on the model for ``medtune plan``: decoder, sizes, tokens of an image.
    """

    title: str
    shape: Callable[[dict[str, Any], Path], Any]
    build: Callable[..., Any]
    transform: Callable[..., Any]
    describe: Callable[[Any], str]


def tensor_names(folder: Path) -> dict[str, Path]:
    """Every tensor of a folder's safetensors files -> its file, by their headers; empty if there are no such files."""
    if not any(folder.glob("*.safetensors")):
        return {}
    return dict(_names(weight_files(folder)))


def _names(files: list[Path]) -> Iterator[tuple[str, Path]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                yield from ((name, file) for name in reader.keys())
        except (SafetensorError, OSError):  # reading the weights says what is wrong
            continue


def embeddings_are_tied(folder: Path, flag: bool | None) -> bool:
    """Whether the output layer of a model is its embedding table.

    As transformers does, the files decide where they disagree with config.json: an output layer with other values is
    kept.

    Args:
        folder: holds the weights; without weights only the flag counts.
        flag: ``tie_word_embeddings`` of config.json; None if it is not there.

    Raises:
        ModelError: if config.json says that there is an output layer, and the files have none.
    """
    names = tensor_names(folder)
    head = next((name for name in names if name.endswith(_HEADS)), None)
    words = next((name for name in names if name.endswith(_EMBEDDINGS)), None)
    if words is None:
        return bool(flag)
    if head is None:
        if flag is False:
            raise ModelError(
                f"{folder}: config.json says that the model has an output layer of its own (tie_word_embeddings is "
                "false), and the files hold none; finish the download, or correct config.json"
            )
        return True
    return bool(flag) and _same(names[head], head, names[words], words)


def _same(file: Path, name: str, other_file: Path, other: str) -> bool:
    with torch.device("cpu"), safe_open(file, framework="pt") as a, safe_open(other_file, framework="pt") as b:
        first, second = a.get_slice(name), b.get_slice(other)
        if first.get_shape() != second.get_shape() or not torch.equal(first[:_SAMPLE], second[:_SAMPLE]):
            return False
        whole: tuple[Tensor, Tensor] = a.get_tensor(name), b.get_tensor(other)
        return torch.equal(*whole)
